"""Delays SIGTERM and SIGINT while a tick is claimed, sent and confirmed, so that a beat that stops leaves no doubt.

Celery's handler closes the scheduler and raises ``SystemExit``, wherever the main thread is. During ``held()`` that
waits until the tick is over, for ``PATIENCE_SECONDS``, or for a second signal. A beat inside a worker (``worker -B``)
has no handler and would die at once, with its lock: it gets ``SystemExit``, too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE_SECONDS = 5.0


class SafePoints:
    """Of one scheduler. It does nothing outside of the main thread: no signal arrives there."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self.is_held = False
        self._pending: int | None = None

    def install(self) -> None:
        """Call it in the thread that ticks, once Celery has set its handlers. A second call changes nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            ends = callable(handler) or (handler == signal.SIG_DFL and number == signal.SIGTERM)
            if ends and handler != self._handle:
                self._before[number] = handler
                signal.signal(number, self._handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False
            pending, self._pending = self._pending, None
            if pending is not None:
                self._end(pending, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.is_held or self._pending is not None:
            self.is_held = False
            self._pending = None
            self._end(number, frame)
            return
        self._pending = number
        again = threading.Timer(PATIENCE_SECONDS, self._insist, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    def _insist(self, ident: int, number: int) -> None:
        if self.is_held and self._pending is not None:
            signal.pthread_kill(ident, number)

    def _end(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        else:
            raise SystemExit(0)
