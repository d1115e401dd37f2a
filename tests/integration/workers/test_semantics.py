"""``docs/semantics.md`` says what happens: each cell of its tables, on a real worker and a real result backend."""

from __future__ import annotations

import pytest

from tests.integration.workers.conftest import Project
from tests.integration.workers.semantics import TABLES, documented, observe, table


@pytest.mark.timeout(180)
@pytest.mark.parametrize("heading", TABLES)
def test_table(project: Project, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LOG", str(project.bodies.path))  # for bodies that are applied eagerly, here
    project.start_worker("-P", "threads", "-c", "120")
    observed = observe(project, heading)
    print(table(observed))
    assert observed == documented()[heading]
    assert not {name for name in project.bodies.overlaps() if heading != "until_executing"}
