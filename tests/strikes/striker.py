"""Strikes: raises what a time limit's signal raises, at any line or bytecode that the package runs.

A signal's handler runs between two bytecodes of the main thread, wherever that is. So a test runs what it is about once
for each place, and looks afterwards at what was left behind. Python itself runs handlers at fewer places than these (at
calls, at jumps back, at the entrance of a function); whatever holds here holds there.

Each strike has a forked process of its own, as it has in a pool: CPython 3.11 may hang in a frame that is traced once
more after a trace function raised in it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded

import celery_etcdlock

__all__ = ["Strike", "Striker", "strike_everywhere"]

PACKAGE = str(Path(celery_etcdlock.__file__).parent)

#: After which a process that was struck hangs.
HANGS_SECONDS = 60


class Strike(SoftTimeLimitExceeded):
    """Raised at one place."""


class Report(NamedTuple):
    """How one run ended. ``place``: where it was struck first in these tests; ``None``: nowhere."""

    place: int | None
    where: str | None
    events: int
    trouble: str | None


class Striker:
    """Strikes at the first place that isn't in ``seen`` yet. ``where`` says which it was; ``None``: there was none.

    A place is a line or bytecode, and the ``depth`` lines or bytecodes of the package that called it. Places before the
    function ``since`` is entered don't count.
    """

    def __init__(self, seen: set[int], *, since: str, opcodes: bool, depth: int) -> None:
        self._seen = seen
        self._since = since
        self._opcodes = opcodes
        self._depth = depth
        self._begun = False
        self.events = 0
        self.place: int | None = None
        self.where: str | None = None

    def run(self, function: Callable[[], object]) -> object:
        """What ``function`` returns or raises."""
        sys.settrace(self._enter)
        try:
            return function()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        self._begun = self._begun or frame.f_code.co_name == self._since
        frame.f_trace_lines = not self._opcodes
        frame.f_trace_opcodes = self._opcodes
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        if self._begun and event in ("line", "opcode"):
            self._look_at(frame)
        return self._step

    def _look_at(self, frame: FrameType) -> None:
        self.events += 1
        place = hash(
            tuple(
                (each.f_code.co_filename, each.f_code.co_name, each.f_lasti if self._opcodes else each.f_lineno)
                for each in _stack(frame, self._depth)
            )
        )
        if place not in self._seen:
            self.place = place
            self.where = " < ".join(
                f"{Path(each.f_code.co_filename).name}:{each.f_lineno} {each.f_code.co_name}"
                for each in _stack(frame, 8)
            )
            self.where += f" (bytecode {frame.f_lasti})"
            raise Strike(self.where)


def _stack(frame: FrameType | None, depth: int) -> Iterator[FrameType]:
    while frame is not None and depth > 0:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame
            depth -= 1
        frame = frame.f_back


def strike_everywhere(
    run: Callable[[Striker], object], seen: set[int], *, since: str, opcodes: bool, depth: int
) -> int:
    """``run`` once for each place, each time in a forked process, which fails by raising.

    Returns how many places there are in the last run, which isn't struck.
    """
    while True:
        report = _in_fork(run, Striker(seen, since=since, opcodes=opcodes, depth=depth))
        if report.trouble is not None:
            raise AssertionError(f"struck at {report.where}:\n{report.trouble}")
        if report.place is None:
            return report.events
        seen.add(report.place)


def _in_fork(run: Callable[[Striker], object], striker: Striker) -> Report:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.signal(signal.SIGALRM, lambda number, frame: _give_up(writing, striker))
        signal.alarm(HANGS_SECONDS)
        trouble = None
        try:
            run(striker)
        except BaseException:
            trouble = traceback.format_exc()
        _report(writing, striker, trouble)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    if not told:
        return Report(None, "an unknown place", 0, "the process died")
    report: Report = pickle.loads(told)
    return report


def _give_up(writing: int, striker: Striker) -> None:
    _report(writing, striker, "it hangs:\n" + "".join(traceback.format_stack()))


def _report(writing: int, striker: Striker, trouble: str | None) -> None:
    os.write(writing, pickle.dumps(Report(striker.place, striker.where, striker.events, trouble))[:60000])
    os._exit(0)
