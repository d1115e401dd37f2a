"""SIGTERM amid a tick waits for its end, but not for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from celery_etcdlock.beat import safe_points
from celery_etcdlock.beat.safe_points import SafePoints


class Ended(BaseException):
    """What Celery's handler raises, but not one that ends pytest."""


def end(number: int, frame: FrameType | None) -> None:
    raise Ended


@pytest.fixture
def points() -> Iterator[SafePoints]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    points = SafePoints()
    points.install()
    points.install()
    yield points
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs between two steps of the interpreter


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_between_ticks_and_behind_one_amid_it(points: SafePoints, number: int) -> None:
    with pytest.raises(Ended):
        send(number)
    finished = False
    with pytest.raises(Ended), points.held():  # noqa: PT012
        send(number)
        finished = True
    assert finished
    with points.held():
        pass


def test_a_second_signal_ends_it_amid_the_tick(points: SafePoints) -> None:
    with points.held():
        send(signal.SIGTERM)
        with pytest.raises(Ended):
            send(signal.SIGTERM)


def test_a_tick_that_hangs_is_ended_after_a_while(points: SafePoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_points, "PATIENCE_SECONDS", 0.1)
    with points.held():
        send(signal.SIGTERM)
        with pytest.raises(Ended):
            time.sleep(60)


def test_without_a_handler_sigterm_is_an_orderly_end() -> None:
    """Of a beat inside of a worker."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        points = SafePoints()
        points.install()
        with pytest.raises(SystemExit), points.held():
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
