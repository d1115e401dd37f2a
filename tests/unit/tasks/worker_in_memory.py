"""What a worker does with its messages, one at a time: traced by Celery, on a broker and locks in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from celery import Celery
from celery.app import trace

from celery_etcdlock import EtcdLocks, SingletonTask
from celery_etcdlock.core.operations import StoreOperation
from celery_etcdlock.core.replies import StoreReply


class Worker:
    """An app, and what a worker does with its messages, one at a time."""

    def __init__(self) -> None:
        self.app = Celery("ends", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(etcdlock_endpoints="memory://", etcdlock_timeout=1)
        self.app.control.purge()  # the broker in memory is one for all apps of a process
        self.ran: list[Any] = []
        self.locks = EtcdLocks.from_app(self.app)

    def task(self, body: Callable[[], object] | None = None, arguments: Sequence[str] = (), **options: Any) -> Any:
        def run() -> None:
            self.ran.append(body() if body is not None else None)

        def run_with(n: int) -> None:
            run()

        task = run_with if arguments else run

        made = self.app.task(base=SingletonTask, name="task", shared=False, **options)(task)
        self.app.finalize()
        return made

    def messages(self) -> list[Any]:
        found = []
        with self.app.connection() as connection:
            queue = connection.SimpleQueue("celery")
            while len(queue):
                message = queue.get(block=False)
                message.ack()
                found.append(message)
        return found

    def run(self, message: Any) -> None:
        args, kwargs, embedded = message.payload
        headers = dict(message.headers)
        request = headers | embedded | {"args": args, "kwargs": kwargs}
        request |= {"delivery_info": {"exchange": "", "routing_key": "celery"}, "hostname": "worker"}
        request |= {"is_eager": False, "called_directly": False}
        task = self.app.tasks[headers["task"]]
        # As in a worker, where Celery's own __call__ keeps the message's request.
        trace._install_stack_protection()
        try:
            trace.build_tracer(task.name, task, app=self.app)(headers["id"], args, kwargs, request)
        finally:
            trace.reset_worker_optimizations(self.app)

    def on_operation(self, monkeypatch: pytest.MonkeyPatch, kind: type, answer: Callable[[], None]) -> None:
        """Call ``answer`` before each operation of this kind; what it raises is what the caller gets."""
        store = self.locks.manager.store
        perform = store.perform

        def first_answer(operation: StoreOperation, timeout_seconds: float) -> StoreReply:
            if isinstance(operation, kind):
                answer()
            return perform(operation, timeout_seconds)

        monkeypatch.setattr(store, "perform", first_answer)

    def holders(self, name: str) -> int:
        return len(self.locks.holders(name))
