"""Warns when another worker has other lock options for the same task: then both may run it at once.

Each worker writes the options of its locked tasks under the prefix when it starts, and reads those of the others. It
deletes its own when it stops; else they expire a day after its start. A thread does this once, beside the start. While
etcd is unreachable it isn't done: it is only a hint for people.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from celery import bootsteps

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.errors import InvalidSetting, LockUnavailable
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.tasks.once_per_message import OncePerMessage
from celery_etcdlock.tasks.singleton_task import SingletonTask, locked_tasks
from celery_etcdlock.wiring import check_inspectable, open_inspector

logger = logging.getLogger("celery_etcdlock")

STANDS_FOR_SECONDS = 24 * 3600
#: Options that decide which lock is taken and how, and so must be the same everywhere.
COMPARED = ("lock", "unique_on", "lock_key", "lock_limit", "unique_for")


class CompareOptions(bootsteps.StartStopStep):
    #: A thread that runs while the pool forks may leave a lock that is held for ever in a child.
    requires = ("celery_etcdlock.worker.apply_dedup:ApplyDedup", "celery.worker.components:Pool")

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._settings = EtcdLocks.from_app(worker.app).settings
        self._hostname = str(worker.hostname)
        self._written_by: Inspector | None = None

    def start(self, worker: Any) -> None:
        try:
            check_inspectable(self._settings)
        except InvalidSetting:
            return
        own = {task.name: options_of(task, self._settings) for task in locked_tasks(worker.app)}
        threading.Thread(target=self._compare, args=(own,), name="celery-etcdlock-compare", daemon=True).start()

    def _compare(self, own: dict[str, dict[str, str]]) -> None:
        inspector = open_inspector(self._settings)
        try:
            others = {host: text for host, text in inspector.notes(NoteKind.OPTIONS).items() if host != self._hostname}
            for line in differences(own, others):
                logger.warning("celery-etcdlock: %s", line)
            inspector.write_note(NoteKind.OPTIONS, self._hostname, json.dumps(own), STANDS_FOR_SECONDS)
            self._written_by = inspector
        except LockUnavailable as error:
            logger.debug("the lock options of other workers can't be read: %s", error)
        finally:
            inspector.close()  # until the end: it connects anew then

    def stop(self, worker: Any) -> None:
        inspector, self._written_by = self._written_by, None
        if inspector is None:
            return
        try:
            inspector.delete_note(NoteKind.OPTIONS, self._hostname)
        except LockUnavailable as error:
            logger.debug("this worker's lock options stay in the store until they expire: %s", error)
        finally:
            inspector.close()


def options_of(task: SingletonTask[Any, Any], settings: Settings) -> dict[str, str]:
    """What decides which lock a task takes, as text; its arguments are nowhere in it."""
    found = {name: _text(getattr(task._lock_plan.options, name)) for name in COMPARED}
    if isinstance(task, OncePerMessage):
        found["unique_on"] = "task_id"
    if settings.hash_key is not None:
        found["etcdlock_hash_key"] = "set"
    return found


def differences(own: dict[str, dict[str, str]], others: dict[str, str]) -> list[str]:
    """A line for each task that another worker locks otherwise. ``others``: what they wrote, by host name."""
    lines = []
    for host, text in sorted(others.items()):
        try:
            theirs = json.loads(text)
        except ValueError:
            continue
        if not isinstance(theirs, dict):
            continue
        for task in sorted(own.keys() & theirs.keys()):
            options = theirs[task] if isinstance(theirs[task], dict) else {}
            for name in sorted(own[task].keys() | options.keys()):
                here, there = own[task].get(name, "not set"), options.get(name, "not set")
                if here != there:
                    lines.append(
                        f"task {task!r} has {name} = {here} here and {there} at worker {host}: they don't keep each "
                        "other from running; give both the same options (or wait until the other is restarted)"
                    )
    return lines


def _text(value: object) -> str:
    return getattr(value, "__qualname__", None) or repr(value)
