"""The public API as type checkers see it. Never run: mypy and pyright read it (``test_typing.py``)."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.result import AsyncResult
from typing_extensions import assert_type

from celery_etcdlock import (
    AsyncEtcdLock,
    CurrentLock,
    EtcdLock,
    EtcdLocks,
    HeldLock,
    LockHolder,
    SingletonTask,
    TaskLock,
    current_lock,
    lock_for,
    singleton_task,
)

app = Celery("api")


@singleton_task
def bare(account_id: int, full: bool = False) -> str:
    return ""


@singleton_task(unique_on=["account_id"], lock_ttl=60)
def with_options(account_id: int) -> str:
    return ""


@singleton_task(bind=True, app=app, lock_key="invoice:{invoice_id}")
def bound(self: SingletonTask[Any, Any], invoice_id: int) -> float:
    assert_type(current_lock(), CurrentLock)
    assert_type(current_lock().fencing_token, int)
    return 0.0


assert_type(bare.delay(1, full=True), AsyncResult[str])
assert_type(with_options.delay(account_id=1), AsyncResult[str])
assert_type(bound.delay(1), AsyncResult[float])
assert_type(bare(1), str)
assert_type(bound(1), float)

bare.delay("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with_options.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bound.delay(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

with EtcdLocks.from_app(app).lock("name", wait_timeout=5) as lock:
    assert_type(lock, HeldLock)
    assert_type(lock.fencing_token, int)
    assert_type(lock.remaining, float)
    assert_type(lock.lost, bool)
    lock.check()

several = EtcdLocks.from_app(app).lock(["a", "b"], wait_timeout=None, limit=2, note="n", on_lost=lambda held: held.key)
assert_type(several, EtcdLock)
assert_type(several.acquire(timeout=1), bool)
assert_type(several.holder, LockHolder | None)


async def asynchronous() -> None:
    lock = EtcdLocks.from_app(app).alock("name")
    assert_type(lock, AsyncEtcdLock)
    assert_type(await lock.acquire(), bool)
    await lock.release()
    assert_type(await lock.holder(), LockHolder | None)
    async with lock as held:
        assert_type(held, HeldLock)


assert_type(bare.lock_for(1, full=True), TaskLock)
assert_type(bare.lock_for(1).hold(), EtcdLock)
assert_type(lock_for(bare, 1), TaskLock)
bare.lock_for("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
