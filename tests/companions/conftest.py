from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tasks.lab import Lab


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """An app with locks in memory, and what a worker does with its messages."""
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    lab = Lab()
    yield lab
    lab.close()
