"""An app with locks in memory, and what a worker does with its messages: by Celery's own tracer, or another's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import trace

from celery_etcdlock import EtcdLocks, NotLocked, SingletonTask, current_lock

_numbers = itertools.count()


def messages(app: Celery) -> list[Any]:
    """All that is published and was taken by nobody."""
    found = []
    with app.connection() as connection:
        queue = connection.SimpleQueue("celery")
        while len(queue):
            message = queue.get(block=False)
            message.ack()
            found.append(message)
    return found


def run_message(app: Celery, message: Any, tracer: Callable[..., Any] | None = None) -> None:
    args, kwargs, embedded = message.payload
    headers = dict(message.headers)
    request = headers | embedded | {"args": args, "kwargs": kwargs}
    request |= {"delivery_info": {"exchange": "", "routing_key": "celery"}, "hostname": "worker"}
    request |= {"is_eager": False, "called_directly": False}
    task = app.tasks[headers["task"]]
    # As in a worker, where Celery's own __call__ keeps the message's request.
    trace._install_stack_protection()
    try:
        (tracer or trace.build_tracer)(task.name, task, app=app)(headers["id"], args, kwargs, request)
    finally:
        trace.reset_worker_optimizations(app)


class Lab:
    """An app, and who ran when: ``bodies`` are the names of the locks that were held."""

    def __init__(self, **options: Any) -> None:
        self.app = Celery(
            f"seam{next(_numbers)}", broker="memory://", backend="cache+memory://", set_as_current=False, **options
        )
        self.app.conf.update(etcdlock_endpoints="memory://")
        messages(self.app)  # of other tests: the broker is the process's
        self.bodies: list[str] = []
        self.locks = EtcdLocks.from_app(self.app)

        def body(number: int = 0) -> int:
            try:
                lock = current_lock()
                lock.check()
                assert self.locks.holders(lock.name)
                self.bodies.append(lock.name)
            except NotLocked:
                self.bodies.append("UNLOCKED")
            return number

        def bound_body(task: Any, number: int = 0) -> int:
            assert isinstance(task, SingletonTask)
            return body(number)

        self.body = body
        self.bound_body = bound_body

    def publish(self, task: Any, *args: Any) -> tuple[Any, Any]:
        result = task.apply_async(args)
        [message] = messages(self.app)
        return result, message

    def close(self) -> None:
        messages(self.app)
        self.locks.close()
