"""The app of a lane of messages: a task for each lifetime, policy and way of acks, and a record of all that happens.

Bodies do as their ``script`` says. Each message that is published, by a producer or by a worker, is on record raw, so
that it can be delivered once more.
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
import signal
import threading
import time
from typing import Any

import kombu.messaging
from celery import Celery
from celery.signals import task_postrun, task_prerun

from celery_etcdlock import SingletonTask, current_lock
from tests.chaos.body import note
from tests.chaos.messages.plan import (
    DONE_SECONDS,
    GHOST_PENDING_SECONDS,
    HELD_WHILE_RUNNING,
    TTL_SECONDS,
    UNIQUE_SECONDS,
    WAIT_SECONDS,
    kinds,
)

PAUSE_SECONDS = 0.02
MOST_NESTED = 5

app = Celery(os.environ["CHAOS_LANE"], broker=os.environ["CHAOS_BROKER"], backend=os.environ["CHAOS_BACKEND"])
app.conf.update(
    task_default_queue=os.environ["CHAOS_QUEUE"],
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
    worker_cancel_long_running_tasks_on_connection_loss=True,
    result_expires=3600,
    etcdlock_endpoints=os.environ["CHAOS_STORE"],
    etcdlock_ttl=TTL_SECONDS,
    etcdlock_timeout=1.5,
    etcdlock_done_ttl=DONE_SECONDS,
)

#: Set while a task runs in this process, so that nothing strikes between two tasks.
_running = threading.Event()


@task_prerun.connect(weak=False)
def _on_start(task_id: str = "", task: Any = None, args: Any = (), **_: Any) -> None:
    _running.set()
    if args:
        note(event="start", id=task_id, name=args[0], retries=task.request.retries)


@task_postrun.connect(weak=False)
def _on_end(**_: Any) -> None:
    _running.clear()


def _record_published() -> None:
    publish = kombu.messaging.Producer._publish

    def recorded(self: Any, body: Any, priority: Any, *rest: Any) -> Any:
        content_type, content_encoding, headers, properties, routing_key, _, _, exchange = rest[:8]
        task = str(headers.get("task", "")) if isinstance(headers, dict) else ""
        if not task.startswith("chaos."):
            return publish(self, body, priority, *rest)
        if os.environ.get("CHAOS_DOOMED"):
            os.kill(os.getpid(), signal.SIGKILL)
        raw = (body, content_type, content_encoding, dict(headers), dict(properties), routing_key, exchange)
        answer = publish(self, body, priority, *rest)
        note(
            event="published",
            id=headers["id"],
            retries=headers.get("retries") or 0,
            replaced=headers.get("replaced_task_nesting") or 0,
            comebacks=headers.get("etcdlock_comebacks") or 0,
            claimed=bool(headers.get("etcdlock_claims")),
            duplicate=bool(headers.get("etcdlock_duplicate")),
            raw=base64.b64encode(pickle.dumps(raw)).decode(),
        )
        return answer

    kombu.messaging.Producer._publish = recorded


_record_published()


class _Troubles(logging.Handler):
    """What our own code warns of: from then on, who can't be asked may have been let down, as the docs say."""

    def emit(self, record: logging.LogRecord) -> None:
        note(event="trouble", text=record.getMessage()[:200])


logging.getLogger("celery_etcdlock").addHandler(_Troubles(logging.WARNING))


def _strike_after(seconds: float) -> None:
    """As a soft time limit does, by its own signal; but never between two tasks."""

    def strike() -> None:
        time.sleep(seconds)
        if _running.is_set():
            note(event="struck", pid=os.getpid())
            os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=strike, daemon=True).start()


def _work(self: Any, name: str, label: str, script: dict[str, Any]) -> dict[str, Any]:
    request = self.request
    nesting = request.replaced_task_nesting or 0
    who = {
        "id": request.id,
        "name": name,
        "label": label,
        "retries": request.retries,
        "replaced": nesting,
        "run": os.urandom(6).hex(),
    }
    lock = current_lock() if self.lock in HELD_WHILE_RUNNING else None
    note(event="enter", pid=os.getpid(), token=lock.fencing_token if lock is not None else None, **who)
    completed = False
    try:
        ends_at = time.monotonic() + script["seconds"]
        while time.monotonic() < ends_at:
            if lock is not None:
                lock.check()
            time.sleep(PAUSE_SECONDS)
        completed = True
    finally:
        try:
            note(event="exit", completed=completed, **who)
        except BaseException:
            # Interrupted even here, which happens once: it ends here all the same.
            note(event="exit", completed=completed, **who)
            raise
    if request.retries < script["retries"]:
        raise self.retry(countdown=script["retry_delay"], max_retries=None)
    if script["replaces"] and nesting < 1:
        raise self.replace(self.s(name, label, {**script, "replaces": False}))
    if script["strike"] is not None:
        _strike_after(script["strike"])
    return {"id": request.id, "label": label, "name": name}


for kind in kinds():
    options: dict[str, Any] = {"lock": kind.lifetime, "on_conflict": kind.policy, "lock_limit": kind.limit}
    if kind.lifetime == "until_expired":
        options["unique_for"] = UNIQUE_SECONDS
    elif kind.ghosts:
        options["pending_ttl"] = GHOST_PENDING_SECONDS
    app.task(
        name=kind.task,
        base=SingletonTask,
        bind=True,
        lock_key="{name}",
        wait_timeout=WAIT_SECONDS,
        acks_late=kind.acks_late,
        reject_on_worker_lost=kind.acks_late,
        **options,
    )(_work)
