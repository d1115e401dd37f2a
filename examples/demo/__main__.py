"""Plays the demo: ``python -m examples.demo``, or ``make demo``. Ends 0 if all held, 1 if not, 128 + N on a signal."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from examples.demo.process import DemoFailed
from examples.demo.scenes import kill_minus_nine, per_argument, singleton
from examples.demo.stage import Check, Screen, Stage
from examples.demo.style import Style

#: Nothing may hang: this ends what no deadline of its own does.
LONGEST_SECONDS = 150
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="Singleton tasks on two real workers.")
    parser.add_argument("--short", action="store_true", help="fewer calls")
    parser.add_argument("--scene", type=int, action="append", choices=(1, 2, 3), help="only this one; may be repeated")
    options = parser.parse_args()
    scenes = options.scene or [1, 2, 3]
    screen = Screen(Style.of())
    try:
        with signals_raise():
            return play(screen, scenes, short=options.short)
    except Stopped as stop:
        screen.line(f"\n{stop}: stopped, with all that was started.")
        return 128 + stop.number
    except BrokenPipeError:
        # Nobody reads any more: keep Python from complaining about that at its end.
        sys.stderr.close()
        return 1


def play(screen: Screen, scenes: list[int], *, short: bool) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-etcdlock-demo-")))
        stack.callback(no_more_signals)
        try:
            screen.title("Starting an etcd, a broker and two workers, all on this machine")
            stage = Stage.set_up(folder, screen, stack)
            if not stage.with_lock:
                screen.step(screen.style.bad("DEMO_WITHOUT_LOCK is set: these tasks take no locks."))
            if 1 in scenes:
                singleton(stage, short=short)
            if 2 in scenes:
                per_argument(stage, short=short)
            if 3 in scenes:
                kill_minus_nine(stage)
        except DemoFailed as failure:
            screen.title(screen.style.bad(f"The demo failed: {failure}"))
            for process in failure.logs:
                screen.line(f"\n--- the end of {process.name}'s log")
                screen.line(process.tail())
            return 1
        return verdict(screen, stage.checks)


def verdict(screen: Screen, checks: list[Check]) -> int:
    style = screen.style
    screen.title("Verdict")
    width = max(len(check.what) for check in checks)
    for check in checks:
        word = style.good("ok ") if check.good else style.bad("NO ")
        screen.line(f"  {word} {check.what:<{width}}  {check.seen}")
    good = all(check.good for check in checks)
    screen.line()
    text = "Exactly one ran, whatever died." if good else "NOT as promised: see above."
    screen.line(f"{(style.good if good else style.bad)(text)} {style.dim(f'({screen.elapsed:.0f} s)')}")
    return 0 if good else 1


@contextmanager
def signals_raise() -> Iterator[None]:
    """A signal becomes an exception, so that what was started is stopped on its way out."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    def too_long(_: int, __: FrameType | None) -> NoReturn:
        raise DemoFailed(f"not done after {LONGEST_SECONDS} s")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError):
                signal.signal(number, handler)


def no_more_signals() -> None:
    """From here on things are being stopped; a second Ctrl-C must not leave half of them."""
    signal.alarm(0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
