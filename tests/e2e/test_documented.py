"""What ``docs/testing.md`` shows for pytest-celery, in a project of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.documented import ROOT, python_blocks
from tests.e2e import engine

pytest_plugins = ["pytester"]

#: What only this machine needs: its own images, and ports that are mapped to it (see conftest.py).
HERE = """
import pytest_docker_tools.wrappers.container as docker_tools
docker_tools.tests_inside_container = lambda: False

@pytest.fixture
def default_etcd_image():
    return "{etcd_image}"
"""


@pytest.mark.timeout(200)
def test_the_documented_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, worker_image: Any) -> None:
    conftest, test = python_blocks("docs/testing.md", "With containers")
    _, tasks = python_blocks("docs/testing.md", "Without a server")
    pytester.mkpydir("shop").joinpath("tasks.py").write_text(tasks)
    # This checkout in the place of a released celery-etcdlock.
    pytester.path.joinpath("Dockerfile").write_text("FROM celery-etcdlock-stack\nWORKDIR /app\n")
    pytester.makeconftest(conftest + HERE.format(etcd_image=engine.etcd_image()))
    pytester.makepyfile(test)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=190)
    result.assert_outcomes(passed=2)
