"""Raises ``LockLost`` in the body of a running task whose lock is lost, and nowhere else.

The loss is found in the renewal's thread; the body runs somewhere else, and each pool has its own means:

===================  ==============================================  ==================================
where the body runs  means                                           what it can't interrupt
===================  ==============================================  ==================================
a process's main     ``SIGURG`` to that thread, whose handler        C code that ignores signals, or
thread: prefork,     raises; it ends a sleep or a socket call too    holds the GIL: it is raised when
solo                                                                 the call returns
another thread:      an asynchronous exception                       a call that blocks in C: it is
threads                                                              raised when the call returns
a greenlet: gevent   thrown in from the hub                          a greenlet that doesn't switch
===================  ==============================================  ==================================

*Why* ``SIGURG``: on Linux and macOS a process without a handler ignores it, so a late one does no harm. Sockets send it
only where somebody set that up. Hardly anybody uses it, so the user keeps ``SIGUSR1``, ``SIGUSR2`` and ``SIGALRM``. One
that we didn't send is passed on to the handler that was there before ours. Where a body has replaced our handler we use
the asynchronous exception, as in another thread: then a sleep or a socket call isn't ended, and ``LockLost`` is raised
when it returns. A handler for ``SIGURG`` that Python doesn't know of (``faulthandler.register``) can't be seen: set
before, it is replaced; set in the body, it gets the signal, and ``LockLost`` isn't raised. ``current_lock().check()``
raises it in any case.

States of one interruption: *idle* until the body begins, then *armed*, and *over* once it raised, the body ended, or
``current_lock().check()`` raised in the body. It raises at most once, and only while armed, so it hits neither Celery's
own code around the body nor the release. A loss while idle is raised before the body. A body that catches ``LockLost``
and goes on is left alone.

A time limit may strike the body's thread in here, too. So the way out is taken twice, one ``finally`` around the other,
and unlocks the mutex.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, TypeVar

from celery_etcdlock.errors import LockLost
from celery_etcdlock.native import allocate_owned_mutex, unlock

Result = TypeVar("Result")

SIGNAL = signal.SIGURG

#: The interruptions that are armed in each thread or greenlet, outermost first.
_armed: dict[int, list[Interruption]] = {}
_mutex = allocate_owned_mutex()


def _after_fork() -> None:
    """A body may fork while the renewal's thread holds the mutex, and the copy would never be released."""
    global _mutex
    _mutex = allocate_owned_mutex()


os.register_at_fork(after_in_child=_after_fork)


def running_here() -> bool:
    """Whether an interruptible body runs in this thread or greenlet, so that a task it calls directly is one too."""
    return bool(_armed.get(threading.get_ident()))


class Interruption:
    """Interrupts one body, if the lock is lost while it runs."""

    def __init__(self) -> None:
        self._lost: LockLost | None = None
        self._is_armed = False
        self._is_over = False
        self._means: _Thread | _Greenlet | None = None
        self._ident = 0

    def interrupt(self, error: LockLost) -> None:
        """Have ``error`` raised in the body. Called in any thread; returns at once."""
        with _mutex:
            self._lost = error
            if self._is_armed and self._means is not None:
                self._means.send()

    def run(self, body: Callable[[], Result]) -> Result:
        """Run ``body``. Raises ``LockLost`` in it, or instead of it."""
        try:
            try:
                self._arm()
                return body()
            finally:
                self._disarm()
        except _LostInThread as error:
            # The same, but of the class that everybody knows.
            raise LockLost(error.name, error.reason) from None
        finally:
            # Once more: something may have struck in the first.
            self._disarm()

    def raised_elsewhere(self) -> None:
        """``LockLost`` is raised in the body by other means: don't raise it again in what the body does about it."""
        if self._ident == threading.get_ident():
            self._disarm()

    def take(self) -> LockLost | None:
        """The error to raise now, once."""
        if not self._is_armed or self._lost is None:
            return None
        self._is_armed = False
        self._lost.thrown_in = True
        return self._lost

    def _arm(self) -> None:
        self._means = _means_here()
        self._ident = threading.get_ident()
        _armed.setdefault(threading.get_ident(), []).append(self)
        with _mutex:
            lost = self._lost
            self._is_armed = lost is None
        if lost is not None:
            raise lost

    def _disarm(self) -> None:
        if self._is_over:
            return
        ident = threading.get_ident()
        with _mutex:
            # Armed, and found, until nothing can arrive any more: what arrived here would have nothing to say.
            around = [other for other in _armed.get(ident, ()) if other is not self]
            if self._means is not None:
                self._means.clear(any(other.waits for other in around))
            self._is_armed = False
            if around:
                _armed[ident] = around
            else:
                _armed.pop(ident, None)
        unlock(_mutex)
        self._is_over = True

    @property
    def waits(self) -> bool:
        """Whether it was asked to raise and hasn't yet."""
        return self._is_armed and self._lost is not None


def _next_error(ident: int) -> LockLost | None:
    for interruption in reversed(_armed.get(ident, [])):
        error = interruption.take()
        if error is not None:
            return error
    return None


class _LostInThread(LockLost):
    """An asynchronous exception is a class, made an instance where it is raised: this one finds out what it says."""

    def __init__(self) -> None:
        error = _next_error(threading.get_ident())
        self.thrown_in = True
        super().__init__(error.name if error else "", error.reason if error else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return LockLost, (self.name, self.reason)


def _means_here() -> _Thread | _Greenlet:
    """How an exception gets into this thread or greenlet.

    Under the mutex, ``send`` has the armed interruption raise there, soon, and ``clear`` takes back what hasn't arrived
    yet, unless bodies around this one wait for the same.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return _Greenlet()
    return _MainThread() if threading.current_thread() is threading.main_thread() else _Thread()


@cache
def _async_exceptions() -> tuple[Callable[[int, Any], int], Any]:
    """``PyThreadState_SetAsyncExc``, and what to give it to take back what hasn't arrived."""
    import ctypes  # only where a body is interrupted

    kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)
    return kind(("PyThreadState_SetAsyncExc", ctypes.pythonapi)), ctypes.py_object()


class _Thread:
    """An asynchronous exception. There is one for each thread, which may stand for several losses."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        self._set, self._nothing = _async_exceptions()
        self._has_sent = False

    def send(self) -> None:
        self._has_sent = True
        self._set(self._ident, _LostInThread)

    def clear(self, others_wait: bool) -> None:
        # Only what was sent: Python 3.11 never comes to rest after taking back nothing, and then hangs in any profiler.
        if self._has_sent:
            self._set(self._ident, self._nothing)
        if others_wait:
            self.send()


class _MainThread(_Thread):
    """A signal. It is sent to the thread, for one to the process may end in another and leave a sleep as it is."""

    _before: Any = None
    _sent = 0

    def __init__(self) -> None:
        super().__init__()
        if signal.getsignal(SIGNAL) != _MainThread._handle:
            _MainThread._before = signal.signal(SIGNAL, _MainThread._handle)

    def send(self) -> None:
        if signal.getsignal(SIGNAL) == _MainThread._handle:
            _MainThread._sent += 1
            signal.pthread_kill(self._ident, SIGNAL)
        else:  # the body has put one of its own there
            super().send()

    @staticmethod
    def _handle(number: int, frame: FrameType | None) -> None:
        # Runs in the main thread, maybe inside of _disarm: takes no mutex. One that comes late finds nothing armed.
        ours, _MainThread._sent = _MainThread._sent, 0
        error = _next_error(threading.get_ident())
        if error is not None:
            raise error
        if not ours and callable(_MainThread._before):
            _MainThread._before(number, frame)


class _Greenlet:
    """The hub throws, in its own turn: then no other greenlet of the thread runs, so what is armed stays armed."""

    def __init__(self) -> None:
        import gevent

        self._greenlet = gevent.getcurrent()
        self._hub = gevent.get_hub()
        self._ident = threading.get_ident()

    def send(self) -> None:
        self._hub.loop.run_callback_threadsafe(self._throw)

    def clear(self, others_wait: bool) -> None:
        """Nothing: the hub finds nothing armed."""

    def _throw(self) -> None:
        error = _next_error(self._ident)
        if error is not None:
            self._greenlet.throw(error)
