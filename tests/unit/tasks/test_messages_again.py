"""A message that comes again: its copies, its own come-backs, its retries, and what they find of each other."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Task, current_task
from celery.exceptions import SoftTimeLimitExceeded

from celery_etcdlock.core.key_kinds import Relation, find
from celery_etcdlock.core.operations import (
    Enqueue,
    FenceSession,
    GrantLease,
    Promote,
    Release,
    TryAcquire,
    TryAll,
    TryEach,
    Unmark,
)
from celery_etcdlock.core.record import Delivery, KeyKind, Record, encode_record
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking import memory_store
from celery_etcdlock.locking.clock import boot_time
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.locking.session import Use
from celery_etcdlock.tasks.entry.caller import delivery_of
from celery_etcdlock.tasks.execution import join, meet_conflict
from celery_etcdlock.tasks.message.headers import (
    CALL_HEADER,
    CLAIMS_HEADER,
    COPY_HEADER,
    POSITION_HEADER,
    RESCHEDULES_HEADER,
    WAITED_HEADER,
    WAITING_SINCE_HEADER,
    WAITS_FOR_HEADER,
    header,
    written_claim,
)
from tests.unit.tasks.worker_in_memory import Worker
from tests.waiting import wait_for

FROM_5_7 = pytest.mark.skipif(not hasattr(Task, "acks_on_failure"), reason="from Celery 5.7 on")
LIFETIMES = ["while_executing", "until_executing", "until_executed", "until_and_while_executing"]


def kinds(worker: Worker, name: str) -> list[KeyKind | None]:
    return [None if key.record is None else key.record.kind for key in worker.locks.holders(name)]


@pytest.mark.parametrize("acks_late", [False, True])
@pytest.mark.parametrize("lifetime", [*LIFETIMES, "until_expired"])
def test_a_copy_doesnt_run_again_whichever_of_the_two_comes_first(
    worker: Worker, lifetime: str, acks_late: bool
) -> None:
    more = {"unique_for": 60} if lifetime == "until_expired" else {}
    task = worker.task(lock=lifetime, lock_key="name", acks_late=acks_late, **more)
    result = task.delay()
    [message] = worker.messages()
    worker.run(copy.deepcopy(message))
    worker.run(message)
    assert len(worker.ran) == 1
    assert result.state == "SUCCESS"


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({}, 1),
        ({"acks_on_failure_or_timeout": False}, 2),
        pytest.param({"acks_on_failure": False}, 2, marks=FROM_5_7),
        pytest.param({"acks_on_failure_or_timeout": False, "acks_on_failure": True}, 1, marks=FROM_5_7),
    ],
)
def test_a_failure_that_celery_does_not_acknowledge_is_no_end(
    worker: Worker, options: dict[str, bool], runs: int
) -> None:
    """Celery rejects it, for instance to a queue of dead letters, from which it may come again."""

    def fails() -> None:
        began.append(1)
        raise ValueError

    began: list[int] = []
    task = worker.task(fails, lock_key="name", acks_late=True, **options)
    result = task.delay()
    [message] = worker.messages()
    worker.run(copy.deepcopy(message))
    worker.run(message)
    assert len(began) == runs
    assert result.state == "FAILURE"


@pytest.mark.parametrize("lifetime", [*LIFETIMES, "until_expired"])
def test_a_copy_doesnt_run_beside_the_first(worker: Worker, lifetime: str) -> None:
    """Also where the lock of the task has ended by then."""
    copies: list[Any] = []

    def meanwhile() -> None:
        if copies:
            worker.run(copies.pop())

    more = {"unique_for": 60} if lifetime == "until_expired" else {}
    task = worker.task(meanwhile, lock=lifetime, lock_key="name", **more)
    result = task.delay()
    [message] = worker.messages()
    copies.append(copy.deepcopy(message))
    worker.run(message)
    assert len(worker.ran) == 1
    [again] = worker.messages()
    worker.run(again)
    assert len(worker.ran) == 1
    assert result.state == "SUCCESS"
    assert worker.messages() == []


def test_a_copy_of_what_has_run_opens_no_second_window(worker: Worker) -> None:
    """The first was published without one, since somebody held the lock, or etcd was away."""
    task = worker.task(lock="until_expired", lock_key="name", unique_for=60, on_conflict="retry")
    with worker.locks.lock("name"):
        task.delay()
    [message] = worker.messages()
    worker.run(copy.deepcopy(message))
    assert kinds(worker, "name") == [KeyKind.WINDOW]
    [window] = worker.locks.holders("name")
    worker.locks.manager.drop_in_the_end(Claim("name", window.token, window.mod_revision))  # it is over
    worker.run(message)
    assert len(worker.ran) == 1
    assert kinds(worker, "name") == []


def test_a_copy_that_has_waited_for_long_comes_back_more_rarely(worker: Worker) -> None:
    """A body may run for hours, and each copy that waits for it takes a slot and asks etcd with each come-back."""
    again: list[Any] = []

    def meanwhile() -> None:
        for waited in (0.0, 8.0, 3600.0):
            mine = copy.deepcopy(message)
            mine.headers |= {WAITING_SINCE_HEADER: time.time() - waited, WAITED_HEADER: [waited, 0.0]}
            worker.run(mine)
            again.extend(worker.messages())

    task = worker.task(meanwhile, lock_key="name")
    task.delay()
    [message] = worker.messages()
    worker.run(message)
    soon, later, at_last = (each.headers[WAITED_HEADER][1] for each in again)
    assert 0.25 <= soon <= 0.5
    assert 1.0 <= later <= 2.1
    assert 2.5 <= at_last <= 5.0


def test_another_call_under_the_same_id_isnt_a_copy(worker: Worker) -> None:
    """Ids that people choose, for a job that is called each night."""
    task = worker.task(lock_key="name")
    for _ in range(2):
        task.apply_async(task_id="nightly")
        worker.run(*worker.messages())
    assert len(worker.ran) == 2


@pytest.mark.parametrize("has_headers", [False, True])
@pytest.mark.parametrize("policy", ["wait", "replace"])
@pytest.mark.parametrize("lifetime", ["until_executed", "while_executing", "until_and_while_executing"])
def test_a_queue_position_is_waited_with_and_not_run_with(
    worker: Worker, lifetime: str, policy: str, has_headers: bool
) -> None:
    """Also one that the message doesn't know of: a copy of it, or its own come-back after an answer was lost."""
    task = worker.task(lock=lifetime, lock_key="name", on_conflict=policy)
    with worker.locks.lock("name"):
        task.delay()
        [message] = worker.messages()
        again = copy.deepcopy(message)
        worker.run(message)
        [waiting] = worker.messages()
        assert kinds(worker, "name") == [KeyKind.HELD, KeyKind.POSITION]
        if not has_headers:
            waiting.headers = {name: value for name, value in waiting.headers.items() if name != POSITION_HEADER}
        for comes in (waiting, again):
            worker.run(comes)
            assert worker.ran == []
            assert kinds(worker, "name") == [KeyKind.HELD, KeyKind.POSITION]
    for message in worker.messages():
        worker.run(message)
    assert len(worker.ran) == 1
    assert worker.holders("name") == 0


@pytest.mark.parametrize("acks_late", [False, True])
def test_a_copy_of_a_run_leaves_what_waits_for_its_retry(worker: Worker, acks_late: bool) -> None:
    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1, acks_late=acks_late)
    first = task.delay()
    [message] = worker.messages()
    again = copy.deepcopy(message)
    again.headers["redelivered"] = True
    worker.run(message)
    [retry] = worker.messages()
    worker.run(again)
    assert kinds(worker, "name") == [KeyKind.HANDOVER]
    assert task.delay().id == first.id, "the call is a duplicate as long as the retry is to come"
    worker.run(retry)
    assert worker.ran == [None]
    assert worker.holders("name") == 0


def test_a_long_id_is_no_stranger_to_its_own_retry(worker: Worker) -> None:
    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    for length in (600, 2000, 9000):
        task_id = "x" * length
        task = worker.task(retry_once, lock="until_executed", lock_key=f"name-{length}", max_retries=1)
        task.apply_async(task_id=task_id)
        worker.run(*worker.messages())
        worker.run(*worker.messages())
        assert worker.ran.pop() is None
        worker = Worker()


@pytest.mark.parametrize("lifetime", ["until_executed", "until_executing", "until_and_while_executing"])
def test_a_claim_that_its_producer_doubts_is_its_messages_and_nobody_else_deletes_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, lifetime: str
) -> None:
    """The put took effect, no answer came: the message goes out without it."""
    task = worker.task(_held_names(worker), lock=lifetime, lock_key="name")
    _open_leases(worker, task)
    with monkeypatch.context() as context:
        context.setattr(worker.locks.manager.store, "perform", _losing(worker.locks.manager.store, applied=True))
        task.delay()
        [message] = worker.messages()
        assert not message.headers.get(CLAIMS_HEADER)
        keys = worker.locks.manager._keeper._store._names  # as they are in the store, behind the trouble
        assert len(keys) == 1
        [key] = next(iter(keys.values())).values()
        assert find([key], delivery_of(message.headers), Relation.OURS) is key
        context.undo()
        worker.run(message)
    assert len(worker.ran) == 1
    wait_for(lambda: worker.holders("name") == worker.holders("name:queued") == 0, "nothing is left")


def test_a_claim_that_is_deleted_in_the_moment_of_its_take_over_leaves_the_lock_free(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its producer, which doubts it: the message doesn't know of it."""
    task = worker.task(lock="until_executed", lock_key="name")
    task.delay()
    [message] = worker.messages()
    message.headers.pop(CLAIMS_HEADER)

    def delete() -> None:
        [key] = worker.locks.holders("name")
        assert worker.locks.manager.claims.drop(Claim("name", key.token, key.mod_revision))

    worker.on_operation(monkeypatch, Promote, delete)
    worker.run(message)
    assert len(worker.ran) == 1
    assert worker.messages() == []
    assert worker.holders("name") == 0


def _held_names(worker: Worker) -> Any:
    """A body during which the producer pays what it owes: it must not take the lock from under it."""

    def body() -> None:
        worker.locks.manager._keeper._flush_others()
        held = [key for name in ("name",) for key in worker.locks.holders(name)]
        assert all(key.record is not None and key.record.kind is KeyKind.HELD for key in held)

    return body


def _open_leases(worker: Worker, task: Any) -> None:
    """Before answers are lost, so that it is the claim whose answer is."""
    task.delay()
    worker.run(*worker.messages())
    worker.ran.clear()


def _away(operation: object, timeout_seconds: float) -> Any:
    raise LockUnavailable("on purpose")


def _losing(store: Any, *, applied: bool) -> Any:
    perform = store.perform

    def without_answers(operation: Any, timeout_seconds: float) -> Any:
        if isinstance(operation, TryEach | TryAll | Enqueue):
            if applied:
                perform(operation, timeout_seconds)
            raise LockUnavailable("no answer", maybe_applied=True)
        if isinstance(operation, FenceSession):
            raise LockUnavailable("no answer", maybe_applied=True)
        return perform(operation, timeout_seconds)

    return without_answers


@pytest.mark.parametrize("ended", ["SUCCESS", "FAILURE"])
def test_a_copy_that_meets_an_outage_leaves_the_result_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """Nor does its broker always say that it is one."""

    def body() -> None:
        if ended == "FAILURE":
            raise ValueError

    task = worker.task(body, lock_key="name")
    result = task.delay()
    [message] = worker.messages()
    again = copy.copy(message)
    worker.run(message)
    with monkeypatch.context() as context:
        context.setattr(worker.locks.manager.store, "perform", _away)
        worker.run(again)
        assert result.state == ended
        [comeback] = worker.messages()
    worker.locks.circuit_breaker.over()
    worker.run(comeback)
    assert (result.state, worker.messages()) == (ended, [])


@pytest.mark.parametrize("setting", ["raise", "retry"])
def test_what_a_call_left_in_doubt_is_gone_without_another_call(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    worker.app.conf.etcdlock_on_unavailable = setting
    task = worker.task(lock="until_executing", lock_key="name")
    _open_leases(worker, task)
    store = worker.locks.manager.store
    with monkeypatch.context() as context:
        context.setattr(store, "perform", _losing(store, applied=True))
        if setting == "raise":
            with pytest.raises(LockUnavailable):
                task.delay()
        else:
            task.delay()
        assert len(store._names) == 1
    wait_for(lambda: not store._names, "the renewal's thread has resolved it")


def test_what_a_call_left_in_doubt_is_gone_at_the_end_of_its_process(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.app.conf.etcdlock_on_unavailable = "raise"
    task = worker.task(lock="until_executed", lock_key="name")
    _open_leases(worker, task)
    manager = worker.locks.manager
    monkeypatch.setattr("celery_etcdlock.locking.renewal.start_thread", lambda *_: None)
    with monkeypatch.context() as context:
        context.setattr(manager.store, "perform", _losing(manager.store, applied=True))
        with pytest.raises(LockUnavailable):
            task.delay()
    assert len(manager.store._names) == 1  # type: ignore[attr-defined]
    manager.close()
    assert not manager.store._names  # type: ignore[attr-defined]


def test_a_retry_doesnt_inherit_what_the_run_before_came_back_for(worker: Worker) -> None:
    """Celery carries a message's headers on to its retry."""

    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1, on_conflict="retry")
    with worker.locks.lock("name"):
        task.delay()
        worker.run(*worker.messages())
    [back] = worker.messages()
    assert header(back.headers, WAITS_FOR_HEADER) == "name"
    worker.run(back)
    [retry] = worker.messages()
    for name in (WAITS_FOR_HEADER, RESCHEDULES_HEADER, WAITING_SINCE_HEADER, WAITED_HEADER):
        assert name in retry.headers
        assert header(retry.headers, name) is None
    worker.run(retry)
    assert worker.ran == [None]


@pytest.mark.parametrize("policy", ["retry", "wait", "join", "replace"])
def test_what_cant_be_back_before_it_expires_ends_as_expired(worker: Worker, policy: str) -> None:
    """Its worker would discard it at once, and the state that this run leaves, RETRY, would be its last."""
    task = worker.task(lock="while_executing", lock_key="name", on_conflict=policy)
    with worker.locks.lock("name"):
        result = task.apply_async(expires=30)
        [message] = worker.messages()
        worker.run(message)
        [back] = worker.messages()
        assert result.state == "RETRY"
        message.headers["expires"] = (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()
        worker.run(message)
        assert worker.messages() == []
        assert result.state == "REVOKED"
        assert "expired" in str(result.result)
    assert worker.holders("name") == 0
    worker.run(back)


def soon() -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()


@pytest.mark.parametrize("first", ["has run", "is dead"])
@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_a_copy_that_expires_while_it_waits_ends_when_the_first_has(worker: Worker, lifetime: str, first: str) -> None:
    """Not before: whether the first will leave a result, nobody can say."""
    copies: list[Any] = []

    def meanwhile() -> None:
        while copies:
            worker.run(copies.pop())
        if first == "is dead":
            raise Killed

    task = worker.task(meanwhile, lock=lifetime, lock_key="name", acks_late=True)
    result = task.apply_async(expires=30)
    [message] = worker.messages()
    message.headers["expires"] = soon()
    copies.append(copy.deepcopy(message))
    with pytest.raises(Killed) if first == "is dead" else nullcontext():
        worker.run(message)
    [again] = worker.messages()
    assert again.headers["expires"] is None, "else a worker ends it, whatever becomes of the first"
    wait_for(lambda: soon_is_over(message), "it has expired")
    worker.run(again)
    assert worker.messages() == []
    assert worker.ran == ([] if first == "is dead" else [None])
    assert result.state == ("REVOKED" if first == "is dead" else "SUCCESS")
    assert first == "has run" or "expired" in str(result.result)
    assert worker.holders("name") == worker.holders("name:queued") == 0


class Killed(BaseException):
    """Ends a body as its process's death does: without a mark, or a result."""


def soon_is_over(message: Any) -> bool:
    return datetime.fromisoformat(message.headers["expires"]) < datetime.now(timezone.utc)


def test_a_copy_that_is_back_before_it_expires_runs_and_so_expires_its_retry(worker: Worker) -> None:
    """If the first is dead by then. What Celery reads of the end is there again."""
    copies: list[Any] = []
    ends: list[Any] = []

    def body() -> None:
        if copies:
            worker.run(copies.pop())
            raise Killed
        ends.append(current_task.request.expires)

    task = worker.task(body, lock_key="name", acks_late=True)
    task.apply_async(expires=300)
    [message] = worker.messages()
    copies.append(copy.deepcopy(message))
    with pytest.raises(Killed):
        worker.run(message)
    [again] = worker.messages()
    worker.run(again)
    assert ends == [message.headers["expires"]]


def test_a_known_copy_that_nobody_can_decide_about_outlives_its_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may run, or have run: a result that says that it expired would be in the place of the first's."""
    task = worker.task(lock_key="name")
    result = task.apply_async(expires=30)
    [message] = worker.messages()
    message.headers |= {"expires": soon(), COPY_HEADER: True}
    with monkeypatch.context() as context:

        def silent() -> None:
            raise LockUnavailable("no answer")

        worker.on_operation(context, TryAcquire, silent)
        worker.run(message)
    assert result.state == "RETRY"
    [again] = worker.messages()
    wait_for(lambda: soon_is_over(message), "it has expired")
    worker.locks.circuit_breaker.over()
    worker.run(again)
    assert worker.ran == []
    assert result.state == "REVOKED"


def test_a_copy_knows_of_a_run_in_its_own_process_that_etcd_doesnt_know_of_yet(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd was silent until the lease of its lock had ended, and gives the copy the lock before it has the mark."""
    task = worker.task(lock_key="name")
    task.delay()
    [message] = worker.messages()
    keeper = worker.locks.manager._keeper
    monkeypatch.setattr(keeper._cleanup, "put_marks", lambda timeout_seconds: False)
    keeper.schedule_mark(delivery_of(message.headers).run)
    worker.run(message)
    assert worker.ran == []


def test_what_comes_back_has_no_headers_of_another_message(worker: Worker) -> None:
    """Published by code that hands on all headers, and not through us."""
    task = worker.task(lock_key="name", on_conflict="retry")
    task.delay()
    [message] = worker.messages()
    message.headers |= {CALL_HEADER: ["somebody", "else"], COPY_HEADER: True}
    with worker.locks.lock("name"):
        worker.run(message)
    [again] = worker.messages()
    assert again.headers[RESCHEDULES_HEADER] == 1
    assert CALL_HEADER not in again.headers
    assert COPY_HEADER not in again.headers


@pytest.fixture
def as_an_older_version_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Records without what they say since there are kinds, as of a worker that isn't upgraded yet."""

    def encoded(record: Record) -> bytes:
        fields = json.loads(encode_record(record))
        return json.dumps(
            {name: value for name, value in fields.items() if name not in ("kind", "successor", "call", "by_lease")}
        ).encode()

    def switch(older: bool) -> None:
        monkeypatch.setattr(memory_store, "encode_record", encoded if older else encode_record)

    return switch


OURS_TO_DROP = (CLAIMS_HEADER, POSITION_HEADER, CALL_HEADER)


@pytest.mark.parametrize("lifetime", ["until_executed", "until_executing", "until_and_while_executing"])
def test_a_claim_of_an_older_version_is_its_messages(
    worker: Worker, as_an_older_version_writes: Callable[[bool], None], lifetime: str
) -> None:
    task = worker.task(lock=lifetime, lock_key="name")
    as_an_older_version_writes(True)
    first = task.delay()
    [message] = worker.messages()
    del message.headers[CALL_HEADER]
    as_an_older_version_writes(False)
    assert task.delay().id == first.id
    worker.run(message)
    assert len(worker.ran) == 1
    assert worker.holders("name") == worker.holders("name:queued") == 0


def test_what_an_older_version_left_for_a_retry_is_the_retrys(
    worker: Worker, as_an_older_version_writes: Callable[[bool], None]
) -> None:
    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1)
    as_an_older_version_writes(True)
    first = task.delay()
    [message] = worker.messages()
    again = copy.deepcopy(message)
    worker.run(message)
    [retry] = worker.messages()
    as_an_older_version_writes(False)
    worker.run(again)
    assert task.delay().id == first.id
    worker.run(retry)
    assert worker.ran == [None]
    assert worker.holders("name") == 0


def test_a_queue_position_of_an_older_version_is_waited_with(
    worker: Worker, as_an_older_version_writes: Callable[[bool], None]
) -> None:
    task = worker.task(lock="until_executed", lock_key="name", on_conflict="wait")
    with worker.locks.lock("name"):
        as_an_older_version_writes(True)
        task.delay()
        worker.run(*worker.messages())
        as_an_older_version_writes(False)
        [waiting] = worker.messages()
        for header in OURS_TO_DROP:
            waiting.headers.pop(header, None)
        worker.run(waiting)
        assert worker.ran == []
        assert worker.holders("name") == 2
        [waiting] = worker.messages()
    worker.run(waiting)
    assert len(worker.ran) == 1
    assert worker.holders("name") == 0


class TestMarks:
    """That a run has ended is known before anybody else can have its lock."""

    @staticmethod
    def seen(worker: Worker, message: Any) -> bool:
        return worker.locks.manager.done.seen(delivery_of(message.headers).run)

    @pytest.mark.parametrize("lost", ["the mark's lease", "the release"])
    def test_one_that_gets_no_answer_comes_before_the_release(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch, lost: str
    ) -> None:
        task = worker.task(lock_key="name")
        task.delay()
        [message] = worker.messages()
        again = copy.deepcopy(message)
        store = worker.locks.manager.store
        perform = store.perform
        marked: list[bool] = []
        away = lost == "the release"

        def answers(operation: Any, timeout_seconds: float) -> Any:
            if away if isinstance(operation, Release) else isinstance(operation, GrantLease) and lost != "the release":
                raise LockUnavailable("no answer", maybe_applied=False)
            if isinstance(operation, Release):
                marked.append(operation.done is not None or self.seen(worker, message))
            return perform(operation, timeout_seconds)

        worker.locks.manager._keeper.enter(30, boot_time() + 5, Use())  # so that it is the mark's lease that is missing
        with monkeypatch.context() as context:
            context.setattr(store, "perform", answers)
            worker.run(message)
            assert worker.holders("name") == 1
            away = False
            lost = "the release"
            wait_for(lambda: worker.holders("name") == 0, "it is released in the background")
        assert marked == [True], "whether it was when its lock was released"
        worker.run(again)
        assert len(worker.ran) == 1

    def test_a_doubtful_lock_is_marked_before_its_doubt_is_resolved(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = worker.task(lock_key="name")
        task.delay()
        [message] = worker.messages()
        store = worker.locks.manager.store
        perform, lost, marked = store.perform, [], []

        def answers(operation: Any, timeout_seconds: float) -> Any:
            if isinstance(operation, TryAcquire) and not lost:
                lost.append(operation)
                perform(operation, timeout_seconds)
                raise LockUnavailable("no answer", maybe_applied=True)
            if isinstance(operation, Release):
                marked.append(self.seen(worker, message))
            return perform(operation, timeout_seconds)

        monkeypatch.setattr(store, "perform", answers)
        worker.run(message)
        assert lost
        assert marked == [True], "whether it was when its lock was released"
        assert worker.ran == [None]
        assert worker.holders("name") == 0


@pytest.mark.parametrize("lifetime", ["until_executed", "until_executing"])
def test_who_joins_a_task_that_never_was_runs_itself(worker: Worker, lifetime: str) -> None:
    """Its producer died between the claim and the publication."""
    task = worker.task(lock=lifetime, lock_key="name", on_conflict="join")
    ghost = task.delay()
    worker.messages()
    result = task.apply_async(task_id="promised")
    [message] = worker.messages()
    worker.run(message)
    [back] = worker.messages()
    assert worker.ran == []
    for name in ("name", "name:queued"):
        worker.locks.manager.drop_ended(name, Delivery(ghost.id))
    worker.run(back)
    assert worker.ran == [None]
    assert result.state == "SUCCESS"
    assert worker.messages() == []


def test_who_joins_a_retry_that_is_no_more_runs_itself(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ drops what expires in a queue: the state stays RETRY, and the lock that was left to it is over."""
    monkeypatch.setattr(meet_conflict, "GONE_SECONDS", 0.1)

    def body() -> None:
        if current_task.request.id == first.id:
            raise current_task.retry(countdown=0)

    task = worker.task(body, lock="until_executed", lock_key="name", on_conflict="join")
    first = task.delay()
    second = task.apply_async(task_id=str(uuid4()))
    message, joins = worker.messages()
    worker.run(message)
    worker.messages()  # dropped
    worker.run(joins)
    [back] = worker.messages()
    assert (first.state, second.state, worker.ran) == ("RETRY", "RETRY", [])
    worker.locks.manager.drop_ended("name", Delivery(first.id, retries=1))
    worker.run(back)
    assert (second.state, worker.ran) == ("SUCCESS", [None])


@pytest.mark.parametrize("released", ["before it looks", "before it acquires"])
def test_who_joins_awaits_the_result_without_the_lock(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, released: str
) -> None:
    """The holder's result is stored just after its release. Who joins isn't to be seen as the next holder."""
    task = worker.task(lock="while_executing", lock_key="name", on_conflict="join")
    manager, holder = worker.locks.manager, str(uuid4())
    lock = manager.acquire("name", Record(Delivery(holder), "task", "host", 1, 0.0), ttl_seconds=30)
    assert isinstance(lock, Lock)
    result = task.delay()
    worker.run(*worker.messages())
    [back] = worker.messages()
    ended: list[object] = []
    if released == "before it looks":
        manager.release(lock)
    else:
        worker.on_operation(monkeypatch, TryAcquire, lambda: ended.append(manager.release(lock)))
    seen: list[int] = []

    def sleep(seconds: float) -> None:
        seen.append(worker.holders("name"))
        worker.app.backend.mark_as_done(holder, "the holder's")

    monkeypatch.setattr(join, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    worker.run(back)
    assert (seen, worker.ran) == ([0], [])
    assert (result.state, result.result) == ("SUCCESS", "the holder's")
    assert worker.holders("name") == 0


def test_a_copy_of_what_has_run_leaves_no_queue_position_behind(worker: Worker) -> None:
    """Two copies that waited at once have one each."""
    task = worker.task(lock="while_executing", lock_key="name", on_conflict="wait")
    with worker.locks.lock("name"):
        task.delay()
        worker.run(*worker.messages())
        [message] = worker.messages()
        [place] = [key for key in worker.locks.manager.keys("name") if key.token == message.headers[POSITION_HEADER][1]]
    worker.run(message)
    with worker.locks.lock("name"):
        assert place.record is not None
        taken: list[Claim] = []
        worker.locks.manager.claims.take_position("name", place.record, 60, taken.append)
        message.headers[POSITION_HEADER] = written_claim(taken[-1])
        worker.run(message)
        assert worker.ran == [None]
        assert worker.messages() == []
        assert kinds(worker, "name") == [KeyKind.HELD]


@pytest.mark.parametrize("on_unavailable", ["retry", "run"])
@pytest.mark.parametrize("found", ["at its publication", "at its run"])
def test_who_joins_a_run_that_failed_without_etcd_fails_like_it(
    worker: Worker, found: str, on_unavailable: str
) -> None:
    """The other's error says nothing of this one's etcd: it neither comes back for it, nor runs unprotected."""
    worker.app.conf.etcdlock_on_unavailable = on_unavailable

    def fail() -> None:
        worker.ran.append("entered")
        if found == "at its run":
            worker.run(duplicate)
        raise LockUnavailable("of the first")

    lifetime = "until_executed" if found == "at its publication" else "while_executing"
    task = worker.task(fail, lock=lifetime, lock_key="name", on_conflict="join")
    task.delay()
    result = task.apply_async(task_id=str(uuid4()))
    [first, duplicate] = worker.messages()
    worker.run(first)
    for message in worker.messages() or [duplicate]:
        worker.run(message)
    assert worker.ran == ["entered"]
    assert worker.messages() == []
    assert result.state == "FAILURE"
    assert str(result.result) == "of the first"


def test_a_retry_that_ends_before_it_has_its_lock_frees_what_was_left_for_it(worker: Worker) -> None:
    """By a soft time limit while it waits, or an outage that its task fails for."""
    worker.app.conf.etcdlock_on_unavailable = "raise"

    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1)
    task.delay()
    worker.run(*worker.messages())
    [retry] = worker.messages()
    del retry.headers[CLAIMS_HEADER]
    store = worker.locks.manager.store
    perform, struck = store.perform, []

    def strike(operation: Any, timeout_seconds: float) -> Any:
        if isinstance(operation, TryAcquire) and not struck:
            struck.append(operation)
            raise SoftTimeLimitExceeded
        return perform(operation, timeout_seconds)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(store, "perform", strike)
        worker.run(retry)
    assert struck
    wait_for(lambda: worker.holders("name") == 0, "what was left for it is gone")


@pytest.mark.parametrize("away", [False, True], ids=["the broker refuses it", "and etcd doesn't answer"])
def test_a_newer_call_that_fails_leaves_the_older_its_place(worker: Worker, away: bool) -> None:
    """Else neither of them runs."""
    task = worker.task(lock="until_executed", lock_key="name", on_conflict="replace", arguments=["n"])
    task.delay(1)
    [older] = worker.messages()
    dropped: list[Any] = []

    def answer() -> None:
        dropped.append(None)
        if away and len(dropped) == 1:
            raise LockUnavailable("on purpose")

    with pytest.MonkeyPatch.context() as context:
        worker.on_operation(context, Unmark, answer)
        with pytest.raises(Exception, match=r"serial|Object of type"):
            task.delay(object())
    assert worker.messages() == []
    wait_for(lambda: worker.holders("name") == 0, "what the newer call took is gone")
    worker.run(older)
    assert worker.ran == [None]


def test_a_retry_that_ran_unprotected_and_failed_frees_what_was_left_for_it(worker: Worker) -> None:
    """Nobody comes for it any more."""
    worker.app.conf.etcdlock_on_unavailable = "run"

    def retry_once() -> None:
        if current_task.request.retries == 0:
            raise current_task.retry(countdown=0)
        worker.ran.append("unprotected")
        raise ValueError("on purpose")

    task = worker.task(retry_once, lock="until_executed", lock_key="name", max_retries=1)
    task.delay()
    worker.run(*worker.messages())
    [retry] = worker.messages()
    del retry.headers[CLAIMS_HEADER]

    def unavailable(*_: Any, **__: Any) -> Any:
        raise LockUnavailable("on purpose")

    with pytest.MonkeyPatch.context() as context:
        context.setattr(worker.locks.manager, "acquire_all", unavailable)
        worker.run(retry)
    assert worker.ran == ["unprotected"]
    wait_for(lambda: worker.holders("name") == 0, "what was left for it is gone")


@pytest.mark.parametrize("policy", ["wait", "replace"])
def test_a_position_that_is_given_up_takes_nothing_else_along(worker: Worker, policy: str) -> None:
    """Headers that lie about it delete nothing either."""
    task = worker.task(lock="until_executed", unique_on=["n"], arguments=["n"], on_conflict=policy)
    task.delay(1)
    [other] = worker.messages()
    theirs = other.headers[CLAIMS_HEADER][0]
    task.apply_async((2,), headers={POSITION_HEADER: theirs})
    [liar] = worker.messages()
    worker.run(liar)
    assert worker.holders(theirs[0]) == 1
    manager = worker.locks.manager
    manager.drop_ended(theirs[0], delivery_of(other.headers), position_only=True)
    assert worker.holders(theirs[0]) == 1
    manager.drop_ended(theirs[0], delivery_of(other.headers))
    assert worker.holders(theirs[0]) == 0
