"""A process with its locks in a model of etcd, whose renewal goes on when the test says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, states
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry
from celery.signals import task_postrun, task_prerun

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.locking.lease_page import LeasePage
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.standalone.process_access import ProcessAccess
from tests.model.model_etcd import ModelEtcd
from tests.strikes.striker import unstruck


class OneAtATime(ModelEtcd):
    """For threads."""

    def __init__(self) -> None:
        super().__init__()
        self._mutex = threading.Lock()

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        self.before_call(path)
        with self._mutex:
            return self._call(path, request, timeout_seconds)

    def _call(self, path: str, request: bytes, timeout_seconds: float) -> bytes:
        before, self.before_call = self.before_call, lambda path: None
        try:
            with unstruck():
                return super().call(path, request, timeout_seconds)
        finally:
            self.before_call = before


class App:
    """An app that serves many processes, one after the other."""

    def __init__(self) -> None:
        self.app = Celery("struck", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(etcdlock_endpoints="memory://", etcdlock_timeout=5)
        self.locks = EtcdLocks.from_app(self.app)

    def task(self, body: Callable[..., object], **options: Any) -> Any:
        options = {"base": SingletonTask, "lock_key": "name"} | options
        return self.app.task(shared=False, **options)(body)

    def messages(self) -> list[Any]:
        found = []
        with self.app.connection() as connection:
            queue = connection.SimpleQueue("celery")
            while len(queue):
                message = queue.get(block=False)
                message.ack()
                found.append(message)
        return found

    def run(self, message: Any) -> object:
        """Run the task of a message as a worker's tracer does. Raises what the task raises."""
        args, kwargs, embedded = message.payload
        headers = dict(message.headers)
        request = headers | embedded | {"args": args, "kwargs": kwargs, "hostname": "worker"}
        request |= {"delivery_info": {"exchange": "", "routing_key": "celery"}}
        request |= {"is_eager": False, "called_directly": False}
        task = self.app.tasks[headers["task"]]
        trace._install_stack_protection()
        task.push_request(**request)
        try:
            with unstruck():
                task_prerun.send(task, task_id=headers["id"], task=task, args=args, kwargs=kwargs)
            outcome: Any = None
            try:
                outcome = task(*args, **kwargs)
                return outcome
            except Exception as error:
                outcome = error
                raise
            finally:
                with unstruck():
                    told = {"task_id": headers["id"], "task": task, "args": args, "kwargs": kwargs}
                    task_postrun.send(task, **told, retval=outcome, state=_state(outcome))
        finally:
            task.pop_request()
            trace.reset_worker_optimizations(self.app)


def _state(outcome: object) -> str:
    for error, state in ((Retry, states.RETRY), (Reject, states.REJECTED), (Ignore, states.IGNORED)):
        if isinstance(outcome, error):
            return state
    return states.FAILURE if isinstance(outcome, Exception) else states.SUCCESS


class Process:
    """One process's manager, over the real group commit and the real store."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.now = 1000.0
        self.etcd = OneAtATime()
        self.group = GroupCommit(EtcdStore(self.etcd, "/p/"))
        self.manager = LockManager(self.group, EtcdStore(self.etcd, "/p/"), clock=lambda: self.now)
        self.manager.claims._wall_clock = lambda: 1e9 + self.now
        self.keeper = self.manager._keeper
        self.page: LeasePage | None = None
        # As if the renewal's thread ran: the test does what it does.
        self.keeper._running.acquire()
        app.locks._accesses.clear()
        app.locks._accesses[os.getpid()] = ProcessAccess(self.manager, lambda: None)

    def write_leases_down(self) -> None:
        """As a prefork child does, for its parent."""
        self.page = LeasePage()
        self.page._acquirer = 0
        self.keeper._sessions._page = self.page

    def acquire(self, name: str) -> Lock:
        record = Record(Delivery(f"task of {name}"), "task", "host", 1, 0.0, 1)
        outcome = self.manager.acquire(name, record, ttl_seconds=30)
        assert isinstance(outcome, Lock), outcome
        return outcome

    def acquire_and_release(self, name: str) -> None:
        self.manager.release(self.acquire(name))

    def renew(self) -> None:
        """What the renewal's thread does as soon as it is woken."""
        for _ in range(3):
            self.keeper._round()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.etcd.advance(seconds)

    def lock_keys(self) -> list[str]:
        return [key.decode() for key in self.etcd.keys(b"/p/v1/")]

    def check_works(self) -> None:
        """Nothing of the process is in the way of the next lock."""
        assert self.group._leader is None
        assert not self.group._queue
        for mutex in (self.group._mutex, self.keeper._sessions._opening, self.manager.claims._leases._opening):
            assert not mutex._is_owned()
        for session in self.keeper._sessions.all():
            assert not session._uses
        if self.page is not None:
            assert not self.page._mutex[1]._is_owned()
            # The parent renews for the leases that are written down.
            assert {entry.lease for entry in self.page.entries()} <= {
                session.lease for session in self.keeper._sessions.all()
            }
        self.acquire_and_release("another")

    def check_owes_nothing(self, but: tuple[Lock, ...] = ()) -> None:
        """Nothing is renewed that nobody holds."""
        leases = [lease.session for lease in self.manager.claims._leases._leases.values()]
        for session in [*self.keeper._sessions.all(), *leases]:
            assert not session._pending_deletes
            assert [lock for lock in session.held() if lock not in but] == []
