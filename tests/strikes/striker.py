"""Strikes: raises what a time limit's signal raises, at any line or bytecode that the package runs.

A signal's handler runs between two bytecodes of the main thread, wherever that is. So a test runs what it is about once
for each place, and looks afterwards at what was left behind. Python itself runs handlers at fewer places than these (at
calls, at jumps back, at the entrance of a function); whatever holds here holds there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

import celery_etcdlock

__all__ = ["Strike", "Striker"]

PACKAGE = str(Path(celery_etcdlock.__file__).parent)


class Strike(SoftTimeLimitExceeded):
    """Raised at one place."""


class Striker:
    """Strikes at the first place that isn't in ``seen`` yet. ``where`` says which it was; ``None``: there was none.

    A place is a line or bytecode, and the ``depth`` lines or bytecodes of the package that called it.
    """

    def __init__(self, seen: set[object], *, since: str, opcodes: bool, depth: int) -> None:
        self._seen = seen
        self._since = since
        self._opcodes = opcodes
        self._depth = depth
        self._begun = False
        self.events = 0
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
        if event in ("line", "opcode"):
            self._look_at(frame)
        return self._step

    def _look_at(self, frame: FrameType) -> None:
        if not self._begun:
            return
        self.events += 1
        place = tuple(
            (each.f_code, each.f_lasti if self._opcodes else each.f_lineno) for each in _stack(frame, self._depth)
        )
        if place not in self._seen:
            self._seen.add(place)
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
