"""Where a call of a locked task is, on its way from the outermost callable to the body.

A call passes several callables: the task's ``__call__``, those of its bases, and ``run``. The first takes the lock, the
others only let it through. A call that the body makes is another call, even of the same task and with the same request.
So each call that holds its lock is noted here, in the context that runs it (threads, greenlets and coroutines have
their own; ``asyncio`` and ``asyncio.to_thread`` pass theirs on):

*on the way* until ``run`` is entered, and again once it has returned (a user's ``__call__`` may try twice): a callable
of the same task belongs to this call. *In the body*: it is a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any


class CallPath:
    """One call of ``task``, let through in a ``with`` block.

    ``names``: of its locks. ``request_id``: the delivery's, for a call that is one.
    """

    def __init__(self, task: Any, request_id: str | None, names: Callable[[], tuple[str, ...]]) -> None:
        self.task = task
        self.request_id = request_id
        self.names = names
        #: What is raised instead of the body, where the lock couldn't be had.
        self.refusal: Exception | None = None
        #: Whether it was let through.
        self.began = False
        #: Whether the call has ended, even if a signal kept this context from being reset.
        self.is_over = False
        self._bodies = 0
        self._around: CallPath | None = None
        self._token: Token[CallPath | None] | None = None

    @property
    def in_body(self) -> bool:
        return self._bodies > 0

    def covers(self, task: Any, request_id: str) -> bool:
        """Whether this call, or one around it, is that delivery of ``task``."""
        call_path: CallPath | None = self
        while call_path is not None:
            if call_path.task is task and call_path.request_id == request_id:
                return True
            call_path = call_path._around
        return False

    # No generators: one that a signal kept from being closed ends when it is collected, in the midst of another call.

    def __enter__(self) -> None:
        self.began = True
        self._around = innermost()
        self._token = _innermost.set(self)

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _innermost.reset(self._token)


class InBody:
    """Around the body of a call."""

    def __init__(self, call_path: CallPath | None) -> None:
        assert call_path is not None, "no call has its lock here"
        self._call_path = call_path

    def __enter__(self) -> None:
        self._call_path._bodies += 1

    def __exit__(self, *error: object) -> None:
        self._call_path._bodies -= 1


_innermost: ContextVar[CallPath | None] = ContextVar("celery_etcdlock_passage", default=None)


def innermost() -> CallPath | None:
    """The call that runs here, of several within each other the last."""
    call_path = _innermost.get()
    while call_path is not None and call_path.is_over:
        call_path = call_path._around
    return call_path
