"""However a message ends, it leaves no lock behind: traced by Celery, on a broker and locks in memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Signature, current_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.states import READY_STATES

from celery_etcdlock import current_lock
from celery_etcdlock.core.operations import LookForDone, Release
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.outcomes import Claim
from tests.unit.tasks.worker_in_memory import Worker
from tests.waiting import wait_for


@pytest.mark.parametrize("how", [{"on_conflict": {"enqueue": "skip", "run": "skip"}}, {"wait_timeout": 0.1}])
def test_a_message_turned_away_gives_up_its_place_in_the_queue(worker: Worker, how: dict[str, Any]) -> None:
    task = worker.task(lock="until_and_while_executing", lock_key="name", **how)
    result = task.delay()
    [message] = worker.messages()
    with worker.locks.lock("name"):
        deadline = time.monotonic() + 10
        while message is not None:
            assert time.monotonic() < deadline
            worker.run(message)
            [message] = worker.messages() or [None]
    assert result.state in ("REVOKED", "FAILURE")
    assert worker.ran == []
    assert task.delay().id != result.id
    assert len(worker.messages()) == 1


def test_a_message_that_rabbitmq_delayed_can_be_delayed_again(worker: Worker) -> None:
    """It drops what comes through a queue for the second time, as it reads in these headers."""
    task = worker.task(lock_key="name", on_conflict="retry")
    task.apply_async(headers={"mine": 1})
    [message] = worker.messages()
    deaths = ["x-death", "x-first-death-queue", "x-last-death-reason"]
    message.headers |= dict.fromkeys(deaths, "expired")
    with worker.locks.lock("name"):
        worker.run(message)
    [again] = worker.messages()
    assert again.headers["mine"] == 1
    assert not set(deaths) & set(again.headers)


@pytest.mark.parametrize("setting", ["raise", "run"])
def test_an_outage_at_the_start_leaves_no_key_behind(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    worker.app.conf.etcdlock_on_unavailable = setting
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    manager = worker.locks.manager

    def away(*arguments: object, **options: object) -> None:
        raise LockUnavailable("away")

    with monkeypatch.context() as context:
        context.setattr(worker.locks.manager, "acquire_all", away)
        worker.run(message)
    assert len(worker.ran) == (setting == "run")
    wait_for(lambda: worker.holders("name") == 0, "the key is gone")
    assert manager is worker.locks.manager


def test_run_keeps_a_lock_that_is_held(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.app.conf.etcdlock_on_unavailable = "run"

    def seen() -> object:
        lock = current_lock()
        lock.check()
        return worker.holders(lock.name)

    task = worker.task(seen, acks_late=True)

    def no_answer() -> None:
        raise LockUnavailable("no answer", maybe_applied=True)

    worker.on_operation(monkeypatch, LookForDone, no_answer)
    task.delay()
    [message] = worker.messages()
    del message.headers["etcdlock_call"]  # as of a producer that doesn't know us: so it has to be asked
    worker.run(message)
    assert worker.ran == [1]


def test_a_time_limit_in_the_first_release_doesnt_keep_the_second_lock(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = worker.task(lock_key=["one", "other"])
    strikes = [SoftTimeLimitExceeded()]

    def strike() -> None:
        if strikes:
            raise strikes.pop()

    worker.on_operation(monkeypatch, Release, strike)
    task.delay()
    [message] = worker.messages()
    worker.run(message)
    assert len(worker.ran) == 1
    wait_for(lambda: worker.holders("one") == worker.holders("other") == 0, "both are free")


def test_a_message_that_lost_one_of_its_locks_doesnt_stand_in_its_own_way(worker: Worker) -> None:
    task = worker.task(lock="until_executed", lock_key=["one", "other"])
    task.delay()
    [message] = worker.messages()
    first = Claim(*message.headers["etcdlock_claims"][0])
    assert worker.locks.manager.claims.drop(first)
    worker.run(message)
    assert len(worker.ran) == 1
    assert worker.holders("one") == worker.holders("other") == 0


def test_a_retry_takes_over_all_its_locks(worker: Worker) -> None:
    def retry_once() -> object:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)
        return current_lock().name, [key.record.until for name in names for key in worker.locks.holders(name)]

    names = ["one", "other", "third"]
    task = worker.task(retry_once, lock="until_executed", lock_key=names, max_retries=1)
    task.delay()
    worker.run(*worker.messages())
    worker.locks.manager.claims.drop(Claim("third", *_known(worker.locks.holders("third")[0])))
    worker.run(*worker.messages())
    [(name, until)] = worker.ran
    assert set(name.split(", ")) == set(names)
    assert until == [None, None, None]
    assert [worker.holders(name) for name in names] == [0, 0, 0]


def test_an_automatic_retry_keeps_the_lock_of_its_call(worker: Worker) -> None:
    def fail_once() -> None:
        if current_task.request.retries == 0:
            raise ValueError("on purpose")

    task = worker.task(
        fail_once, lock="until_executed", lock_key="name", autoretry_for=(ValueError,), retry_kwargs={"countdown": 0}
    )
    first = task.delay()
    worker.run(*worker.messages())
    assert task.delay().id == first.id
    worker.run(*worker.messages())
    assert worker.ran == [None]
    assert worker.holders("name") == 0


def _known(key: Key) -> tuple[str, int]:
    return key.token, key.mod_revision


def test_a_key_that_its_producer_never_knew_of_is_the_messages_own(worker: Worker) -> None:
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    del message.headers["etcdlock_claims"]  # as after a put whose answer was lost
    worker.run(message)
    assert len(worker.ran) == 1
    assert worker.holders("name") == 0


@pytest.mark.parametrize("acks_late", [False, True])
def test_a_time_limit_that_strikes_while_a_message_is_sent_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, acks_late: bool
) -> None:
    """Late, it is rejected and comes again; early, its result says what ended it, not what it was sent back for."""
    task = worker.task(lock_key="name", on_conflict="retry", acks_late=acks_late)
    with worker.locks.lock("name"):
        result = task.delay()
        [message] = worker.messages()

        def strike(*_: object, **__: object) -> None:
            raise SoftTimeLimitExceeded(1)

        monkeypatch.setattr(Signature, "apply_async", strike)
        worker.run(message)
    if acks_late:
        assert result.state not in READY_STATES
    else:
        assert (result.state, type(result.result)) == ("FAILURE", SoftTimeLimitExceeded)
    assert worker.ran == []
