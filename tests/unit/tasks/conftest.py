from __future__ import annotations

import pytest

from tests.unit.tasks.worker_in_memory import Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    return Worker()
