"""Ends the wait of one caller from another thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WaitCancellation:
    """Set once, by anybody. Whoever waits has ``waking`` call what wakes it, so no wait goes on beyond it."""

    def __init__(self) -> None:
        self.stopped = False
        self._wake: Callable[[], object] | None = None

    def stop(self) -> None:
        # In this order: whoever begins to wait now finds it stopped.
        self.stopped = True
        wake = self._wake
        if wake is not None:
            wake()

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """During the block ``stop`` calls ``wake``, in the thread that stops. It may be called twice."""
        self._wake = wake
        try:
            if self.stopped:
                wake()
            yield
        finally:
            self._wake = None
