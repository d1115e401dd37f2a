"""A body that forks: what its copy is told of the lock that its parent holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockLost, SingletonTask, current_lock
from celery_etcdlock.locking.clock import boot_time

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Copy:
    """A forked copy of this process, which does what it is told and answers."""

    def __init__(self, do: Callable[[str], str]) -> None:
        tasks, answers = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(tasks[1])
            try:
                with os.fdopen(tasks[0]) as read, os.fdopen(answers[1], "w", buffering=1) as write:
                    for line in read:
                        write.write(do(line.strip()) + "\n")
            finally:
                os._exit(0)
        os.close(tasks[0])
        os.close(answers[1])
        self._tell = os.fdopen(tasks[1], "w", buffering=1)
        self._answers = os.fdopen(answers[0])

    def ask(self, what: str) -> str:
        self._tell.write(what + "\n")
        return self._answers.readline().strip()

    def end(self) -> None:
        self._tell.close()
        self._answers.close()
        os.waitpid(self.pid, 0)


def check(what: str) -> str:
    """In the copy: what the lock says, now or ``later``, when its deadline is over."""
    lock: Any = current_lock()
    if what == "later":
        lock.session.now = lambda: boot_time() + 1000
    try:
        lock.check()
    except LockLost as error:
        assert lock.lost
        assert lock.remaining == 0.0
        return error.reason
    return f"{lock.remaining > 0}"


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("forked", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.etcdlock_endpoints = "memory://"
    yield app
    EtcdLocks.from_app(app).close()


def run(app: Celery, body: Callable[[], object]) -> None:
    def task() -> None:
        body()

    app.task(base=SingletonTask, name="task", lock_key="name", shared=False)(task)()


def test_a_copy_knows_what_its_parent_knows(app: Celery) -> None:
    copies: list[Copy] = []

    def body() -> None:
        copy = Copy(check)
        copies.append(copy)
        lock: Any = current_lock()
        assert copy.ask("now") == "True"
        assert "couldn't renew it before its deadline" in copy.ask("later")
        lock.session.renewed(boot_time() + 2000)
        assert copy.ask("now") == "True"
        lock.check()

    run(app, body)
    assert "doesn't hold it any more" in copies[0].ask("now")
    copies[0].end()


def test_a_copy_is_told_of_a_loss_and_tells_nobody(app: Celery) -> None:
    def body() -> None:
        copy = Copy(check)
        lock: Any = current_lock()
        told: list[str] = []
        lock.on_check_failed = lambda: told.append("told")
        lock.lose("asked to let go")
        assert "doesn't hold it any more" in copy.ask("now")
        assert told == []
        copy.end()

    run(app, body)


def test_a_copy_whose_parent_died_trusts_nothing(app: Celery) -> None:
    """The lease of one that died is revoked before its time is over."""
    ready, go = os.pipe(), os.pipe()

    def body() -> None:
        if os.fork() == 0:
            os.read(go[0], 1)
            os.write(ready[1], check("now").encode())
            os._exit(0)
        os.write(ready[1], b"forked")
        os.kill(os.getpid(), signal.SIGKILL)

    holder = os.fork()
    if holder == 0:
        run(app, body)
        os._exit(1)
    assert os.read(ready[0], 100) == b"forked"
    os.waitpid(holder, 0)
    os.write(go[1], b"g")
    assert b"doesn't hold it any more" in os.read(ready[0], 200)


def test_a_lock_whose_copies_are_told_nothing_says_so(app: Celery) -> None:
    with EtcdLocks.from_app(app).lock("name") as lock:
        ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(ready[1], str(lock.lost_reason).encode())
            os._exit(0)
        assert b"nobody can say here" in os.read(ready[0], 200)
        os.waitpid(pid, 0)
        lock.check()
