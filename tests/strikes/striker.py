"""Strikes: raises what a time limit's signal raises, at any place that the package reaches (``instrument``).

A test runs what it is about once for each place, and looks afterwards at what was left behind.
"""

from __future__ import annotations

import contextvars
import faulthandler
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from celery.exceptions import SoftTimeLimitExceeded

import celery_etcdlock
from tests.strikes.instrument import HOOK, PLACES

#: After which a run that was struck hangs, and its process is ended.
HANGS_SECONDS = 60

#: How many frames of the package make a place another one.
SHALLOW = 2
DEEP = 8

FOLDER = f"{Path(celery_etcdlock.__file__).parent}{os.sep}"


class Strike(SoftTimeLimitExceeded):
    """Raised at one place."""


class Striker:
    """Strikes at the first place that isn't in ``seen`` yet. ``where`` says which it was; ``None``: there was none."""

    def __init__(self, seen: set[int], depth: int) -> None:
        self._seen = seen
        self._depth = depth
        self.events = 0
        self.place: int | None = None
        self.where: str | None = None

    def run(self, function: Callable[[], object]) -> object:
        """What ``function`` returns or raises."""
        thread = threading.get_ident()

        def reach(place: int) -> None:
            if threading.get_ident() == thread:
                self._reach(place, sys._getframe(2))

        HOOK.reach = reach
        try:
            return function()
        finally:
            HOOK.reach = None

    def _reach(self, number: int, frame: FrameType) -> None:
        self.events += 1
        callers = [(id(each.f_code), each.f_lasti) for each in _stack(frame, self._depth)]
        place = hash((number, *callers))
        if place in self._seen:
            return
        HOOK.reach = None
        self.place = place
        self.where = " < ".join(
            [str(PLACES[number]), *(f"{each.f_code.co_name}:{each.f_lineno}" for each in _stack(frame, DEEP))]
        )
        raise Strike(self.where)


def _stack(frame: FrameType | None, depth: int) -> Iterator[FrameType]:
    while frame is not None and depth > 0:
        if frame.f_code.co_filename.startswith(FOLDER):
            yield frame
            depth -= 1
        frame = frame.f_back


@contextmanager
def unstruck() -> Iterator[None]:
    """What another process does, or Celery, is struck otherwise."""
    reach, HOOK.reach = HOOK.reach, None
    try:
        yield
    finally:
        HOOK.reach = reach


class Report(NamedTuple):
    """What became of the strikes at all places. ``events``: places that an unstruck run reaches."""

    strikes: int
    events: int
    troubles: list[str]


def strike_everywhere(run: Callable[[Striker], object], seen: set[int], depth: int) -> Report:
    """``run`` once for each place, and what it raised; the last time without a strike."""
    strikes, troubles = 0, []
    # What a struck run leaves behind is collected between runs, not within another, where it would be struck too.
    gc.disable()
    gc.collect()
    gc.freeze()  # what there is so far need not be looked at each time
    while True:
        striker = Striker(seen, depth)
        faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
        try:
            contextvars.copy_context().run(run, striker)
        except BaseException:
            troubles.append(f"struck at {striker.where}:\n{traceback.format_exc()}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        if striker.place is None:
            return Report(strikes, striker.events, troubles)
        seen.add(striker.place)
        strikes += 1
