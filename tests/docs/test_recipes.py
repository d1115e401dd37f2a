"""What docs/recipes.md says of its tasks, on locks in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_etcdlock.testing import hold, use_locks
from tests.docs.pages import blocks

STUBS = str(Path(__file__).parent / "stubs")


@pytest.fixture(scope="module")
def tasks() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, STUBS)
    import names

    found: dict[str, Any] = {name: getattr(names, name) for name in names.__all__} | {"__name__": "recipes"}
    for block in blocks("docs/recipes.md"):
        if "etcdlock_dedup" not in block.text and "etcdlock_scope" not in block.text:
            exec(block.text, found)
    yield found
    sys.path.remove(STUBS)
    sys.modules.pop("names", None)


@pytest.fixture(autouse=True)
def memory(tasks: dict[str, Any]) -> Iterator[None]:
    with use_locks("memory://"):
        yield


def test_one_at_a_time_is_skipped(tasks: dict[str, Any]) -> None:
    with hold(tasks["rebuild_index"]):
        assert tasks["rebuild_index"].apply().state == "REVOKED"
    assert tasks["rebuild_index"].apply().state == "SUCCESS"


def test_accounts_are_apart(tasks: dict[str, Any]) -> None:
    sync = tasks["sync_account"]
    assert sync.lock_for(1).name == sync.lock_for(account_id=1, full=True).name != sync.lock_for(2).name


def test_queued_once_and_returns_the_queued_call(tasks: dict[str, Any]) -> None:
    first = tasks["recompute"].delay(7)
    assert tasks["recompute"].delay(7).id == first.id
    assert tasks["recompute"].delay(8).id != first.id


def test_newest_replaces_the_queued_call(tasks: dict[str, Any]) -> None:
    first, second = tasks["render"].delay(1, "old"), tasks["render"].delay(1, "new")
    assert second.id != first.id
    assert tasks["render"].lock_for(1, "new").name == tasks["render"].lock_for(1, "old").name


def test_a_limit_of_five(tasks: dict[str, Any]) -> None:
    call = tasks["call_payment_api"]
    held = [hold(call, order) for order in range(5)]
    assert [lock.acquire(blocking=False) for lock in held] == [True] * 5
    assert not hold(call, 5).acquire(blocking=False)
    for lock in held:
        lock.release()


def test_once_a_day(tasks: dict[str, Any]) -> None:
    first = tasks["send_digest"].delay(1, "2026-11-26")
    assert tasks["send_digest"].delay(1, "2026-11-26").id == first.id
    assert tasks["send_digest"].delay(1, "2026-11-27").id != first.id


def test_names(tasks: dict[str, Any]) -> None:
    assert tasks["import_orders"].lock_for("acme", "u").name == "tenant:acme:import"
    assert tasks["import_account"].lock_for(7).name == tasks["delete_account"].lock_for(7).name == "account:7"
    assert tasks["transfer"].lock_for("a", "b", 1).names == ("account:a", "account:b")


def test_a_view_takes_the_same_lock(tasks: dict[str, Any]) -> None:
    with tasks["locks"].lock("account:7"):
        assert tasks["import_account"].lock_for(7).locked()
