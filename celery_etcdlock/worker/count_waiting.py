"""Counts the messages in this worker that wait for a lock without a queue position, and leaves the counts as a note.

``retry`` and ``join`` leave no trace in etcd, so nobody else could see who waits. What waits is a message that came
back: its headers say for which lock, and it is in the memory of the worker's MainProcess until its time has come,
whichever process of the pool met the conflict. So it is counted here from when it is received until it starts, ends or
is given back, and no child has to say anything.

*Cost.* A message that didn't come back costs one look at its headers. The note is written by a thread, at most every
``EVERY_SECONDS``: when it changed, or before it runs out. What waits for less than ``FIRST_SECONDS`` alone has none.

*Trust.* The note is for people. It is late by some seconds, and not counted is what waits elsewhere: in the broker's
queues, and where the broker itself keeps a message until its delay is over (quorum queues).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from celery.signals import task_received

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.policies import POLICIES
from celery_etcdlock.core.waiting_counts import JOINING, RETRYING, WaitingCount, WaitingCounts, count, write_note
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.errors import InvalidSetting, LockUnavailable
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.tasks.message import headers as message_headers
from celery_etcdlock.tasks.singleton_task import locked_tasks
from celery_etcdlock.wiring import check_inspectable, open_inspector
from celery_etcdlock.worker.listening_step import ListeningStep

logger = logging.getLogger("celery_etcdlock")

FIRST_SECONDS = 2.0
EVERY_SECONDS = 5.0
#: How long a note stands that isn't written anew, and when it is although it didn't change.
STANDS_FOR_SECONDS = 30
ANEW_SECONDS = 10.0
#: The thread and its connection are kept for so long after the last message.
IDLE_SECONDS = 60.0
#: What more there is isn't counted.
MOST_MESSAGES = 100_000
#: Seconds that the end of a worker may wait for its note to be deleted.
LAST_SECONDS = 2.0


class CountWaiting(ListeningStep):
    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        settings = EtcdLocks.from_app(consumer.app).settings
        # With the process: at a restart, the one that ends mustn't take along the note of the one that begins.
        worker = f"{consumer.hostname}:{os.getpid()}"
        self._waiting = WaitingMessages(lambda: open_inspector(settings), worker)
        try:
            check_inspectable(settings)
        except InvalidSetting:
            return
        if locked_tasks(consumer.app):
            self.connect(task_received, self._on_received)

    def _on_received(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        if sender is not self._consumer:
            return
        name = message_headers.text_in(request.request_dict, message_headers.WAITS_FOR_HEADER)
        how = None if name is None else how_it_waits(request.request_dict)
        if name is not None and how is not None:
            self._waiting.add(request, name, how)

    def stop(self, consumer: Any) -> None:
        """The connection is lost or the worker stops: what waits here goes back to the broker."""
        self._waiting.clear()

    def shutdown(self, consumer: Any) -> None:
        super().shutdown(consumer)
        self._waiting.close()

    def info(self, consumer: Any) -> dict[str, Any]:  # type: ignore[override]  # typed as empty
        total = self._waiting.counts().total
        return {"etcdlock_waiting": {"retrying": total.retrying, "joining": total.joining}}


def how_it_waits(carrier: Any) -> WaitingCount | None:
    """How a message waits that came back for a lock.

    ``None``: it has a queue position, or is a redelivered copy, which waits for the end of its own task.
    """
    header = message_headers
    if header.position_in(carrier) is not None or header.header(carrier, header.COPY_HEADER):
        return None
    duplicate = header.duplicate_in(carrier, header.DUPLICATE_HEADER)
    policy = None if duplicate is None else POLICIES.get(duplicate.policy)
    joins = policy is not None and policy.needs_result
    return JOINING if joins or header.duplicate_in(carrier, header.JOIN_HEADER) is not None else RETRYING


class WaitingMessages:
    """The messages that wait, and the thread that writes how many they are, as ``worker``, while there are any."""

    def __init__(self, open_store: Callable[[], Inspector], worker: str) -> None:
        self._open_inspector = open_store
        self._worker = worker
        self._mutex = threading.Lock()
        #: Requests aren't kept: one that is gone, waits no more.
        self._messages: list[tuple[weakref.ref[Any], str, WaitingCount]] = []
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def add(self, request: Any, name: str, how: WaitingCount) -> None:
        with self._mutex:
            if len(self._messages) >= MOST_MESSAGES or self._closing.is_set():
                return
            self._messages.append((weakref.ref(request), name, how))
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell, name="celery-etcdlock-count", daemon=True)
                self._thread.start()

    def clear(self) -> None:
        with self._mutex:
            self._messages.clear()

    def close(self) -> None:
        with self._mutex:
            self._closing.set()
            self._messages.clear()
            thread = self._thread
        if thread is not None:
            thread.join(LAST_SECONDS)

    def counts(self) -> WaitingCounts:
        with self._mutex:
            self._messages = [message for message in self._messages if _waits(message[0]())]
            waiting = [(name, how) for _, name, how in self._messages]
        return count(waiting)

    # --- the thread -----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        note = _Note(self._open_inspector, self._worker)
        waited_at = time.monotonic()
        self._closing.wait(FIRST_SECONDS)
        while not self._closing.is_set():
            text = write_note(self.counts())
            now = time.monotonic()
            if text:
                waited_at = now
            note.update(text)
            if now - waited_at > IDLE_SECONDS and not note.text:
                with self._mutex:
                    if not self._messages:
                        self._thread = None
                        break
            self._closing.wait(EVERY_SECONDS)
        note.update("")
        note.close()


class _Note:
    """The note as it stands in the store, for all that is known. Raises nothing."""

    def __init__(self, open_store: Callable[[], Inspector], worker: str) -> None:
        self._open_inspector = open_store
        self._worker = worker
        self._inspector: Inspector | None = None
        self.text = ""
        self._written_at = 0.0

    def update(self, text: str) -> None:
        """Empty: delete it."""
        now = time.monotonic()
        if text == self.text and (not text or now - self._written_at < ANEW_SECONDS):
            return
        try:
            if self._inspector is None:
                self._inspector = self._open_inspector()
            if text:
                # Whatever becomes of the call, there may be a note from now on.
                self.text, self._written_at = text, 0.0
                self._inspector.write_note(NoteKind.WAITING, self._worker, text, STANDS_FOR_SECONDS)
                self._written_at = now
            else:
                self._inspector.delete_note(NoteKind.WAITING, self._worker)
                self.text = ""
        except LockUnavailable as error:
            logger.debug("how many messages wait here can't be told for now: %s", error)
        except Exception:
            logger.exception("celery-etcdlock: how many messages wait here can't be told")

    def close(self) -> None:
        if self._inspector is not None:
            self._inspector.close()


def _waits(request: Any) -> bool:
    """Whether the message of this request hasn't started and may still do so."""
    return request is not None and request.time_start is None and not request.acknowledged
