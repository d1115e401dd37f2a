"""What a message held that ends without having started, by each way in which the MainProcess learns of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_task
from celery.app.task import Context
from celery.signals import task_rejected, task_revoked
from celery.utils.dispatch import Signal

from celery_etcdlock.core.record import Delivery, KeyKind
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.tasks.message.headers import CLAIMS_HEADER
from celery_etcdlock.worker.free_never_started import FreeNeverStarted
from celery_etcdlock.worker.listening_step import ListeningStep
from tests.unit.tasks.worker_in_memory import Worker
from tests.waiting import wait_for


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    worker = Worker()
    step = FreeNeverStarted(SimpleNamespace(app=worker.app))
    yield worker
    step.stop(None)


def retried(worker: Worker, **options: Any) -> tuple[Any, Any]:
    """A task whose first run left its lock for a retry, and the retry's message."""

    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1, **options)
    task.delay()
    worker.run(*worker.messages())
    assert [key.record.kind for key in worker.locks.holders("name") if key.record] == [KeyKind.HANDOVER]
    [retry] = worker.messages()
    return task, retry


def announce_revoked(task: Any, message: Any) -> None:
    """As Celery's ``Request._announce_revoked``."""
    args, kwargs, embedded = message.payload
    context = Context(dict(message.headers) | embedded | {"args": args, "kwargs": kwargs})
    task_revoked.send(sender=task, request=context, terminated=False, signum=None, expired=True)


@pytest.mark.parametrize("knows", [True, False], ids=["knows its claim", "was published without it"])
def test_a_retry_that_expires(worker: Worker, knows: bool) -> None:
    task, retry = retried(worker)
    if not knows:
        del retry.headers[CLAIMS_HEADER]
    announce_revoked(task, retry)
    wait_for(lambda: worker.holders("name") == 0, "the lock is free")


@pytest.mark.parametrize("by_task", [True, False], ids=["the task's", "the call's"])
@pytest.mark.parametrize("replaces", [True, False], ids=["replacement", "retry"])
def test_what_expires_where_no_worker_meets_it_keeps_its_lock_no_longer(
    worker: Worker, replaces: bool, by_task: bool
) -> None:
    """RabbitMQ drops what expires in a queue, without a word to anybody."""

    def go_on_once() -> None:
        if replaces:
            raise current_task.replace(current_task.s().set(expires=90))
        raise current_task.retry(countdown=0)

    options = {"expires": 90} if by_task else {}
    task = worker.task(go_on_once, lock="until_executed", lock_key="name", **options)
    task.apply_async(**({} if by_task else {"expires": 90}))
    worker.run(*worker.messages())
    [record] = [key.record for key in worker.locks.holders("name")]
    assert record is not None
    assert record.kind is KeyKind.HANDOVER
    assert record.until is not None
    assert record.until - record.since == pytest.approx(90, abs=30)


def test_a_message_that_is_refused(worker: Worker) -> None:
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    task_rejected.send(sender=None, message=message, exc=None)
    wait_for(lambda: worker.holders("name") == 0, "the lock is free")


def test_two_workers_in_one_process_both_hear_of_it() -> None:
    """Celery before 5.7 takes their methods for one receiver."""
    signal, heard = Signal(), []

    class Step(ListeningStep):
        def on_message(self, **_: Any) -> None:
            heard.append(self)

    steps = [Step(None), Step(None)]
    for step in steps:
        step.connect(signal, step.on_message)
    signal.send(sender=None)
    steps[0].disconnect()
    signal.send(sender=None)
    assert heard == [*steps, steps[1]]


def test_the_thread_ends_with_its_worker_and_frees_what_there_is_first(worker: Worker) -> None:
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    step = FreeNeverStarted(SimpleNamespace(app=worker.app))
    step.free(message.headers)
    step.stop(None)
    wait_for(lambda: not step._runs, "the thread has ended")
    assert worker.holders("name") == 0
    task.delay()
    [message] = worker.messages()
    step.free(message.headers)  # a message that the pool gives up in a warm shutdown
    wait_for(lambda: worker.holders("name") == 0, "the lock is free")
    wait_for(lambda: not step._runs, "the thread has ended")


def test_a_copy_that_expires_leaves_the_retrys_lock(worker: Worker) -> None:
    """The copy is of the run that left it, not of the one for which it stands."""
    task, retry = retried(worker)
    retry.headers["retries"] = 0
    announce_revoked(task, retry)
    _await_thread(worker)
    retry.headers["retries"] = 1
    assert worker.holders("name") == 1
    worker.run(retry)
    assert worker.ran == [None]


def test_a_retry_that_is_revoked_while_its_predecessor_still_releases(worker: Worker) -> None:
    """It is published before the run ends that leaves the lock: what is left later is freed, too."""
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    first = Delivery(message.headers["id"])
    manager = worker.locks.manager
    worker.locks.manager.drop_ended("name", first)
    lock = manager.acquire("name", worker.locks.record(first, task.name), ttl_seconds=30)
    assert isinstance(lock, Lock)
    message.headers["retries"] = 1
    looked: list[object] = []
    perform = manager.store.perform
    manager.store.perform = lambda operation, seconds: (looked.append(operation), perform(operation, seconds))[1]  # type: ignore[method-assign]
    announce_revoked(task, message)
    wait_for(lambda: looked, "it was looked at")
    assert manager.keep(lock, replace(lock.record, kind=KeyKind.HANDOVER, successor=(1, 0)), 60)
    wait_for(lambda: worker.holders("name") == 0, "what was left is free")


def test_a_window_stands_whatever_becomes_of_its_message(worker: Worker) -> None:
    task = worker.task(lock="until_expired", lock_key="name", unique_for=60)
    task.delay()
    [message] = worker.messages()
    announce_revoked(task, message)
    _await_thread(worker)
    assert worker.holders("name") == 1


def test_nothing_ends_the_thread(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("on purpose")

    task, retry = retried(worker)
    with monkeypatch.context() as context:
        context.setattr(worker.locks.manager.claims, "drop_ended", wrong)
        announce_revoked(task, retry)
        announce_revoked(task, retry)
    announce_revoked(task, retry)
    wait_for(lambda: worker.holders("name") == 0, "the lock is free")


def _await_thread(worker: Worker) -> None:
    """It does one message after the other."""
    record = replace(worker.locks.record(Delivery("marker"), "t"), kind=KeyKind.CLAIM)
    worker.locks.manager.claims.claim_all([("marker", record)], 60)
    message = SimpleNamespace(headers={"id": "marker", CLAIMS_HEADER: [["marker", "t", 1]]})
    task_rejected.send(sender=None, message=message, exc=None)
    wait_for(lambda: worker.holders("marker") == 0, "the thread is done")
