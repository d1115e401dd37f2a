"""``Interruption`` in a main thread and in others. gevent's greenlets are in the workers' tests."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from celery_etcdlock.errors import LockLost
from celery_etcdlock.interruptions import interrupts
from celery_etcdlock.tasks.execution.interruption import Interruption, running_here

LOST = LockLost("name", "a reason")

Run = Callable[[Callable[[], object]], object]


def in_main_thread(function: Callable[[], object]) -> object:
    return function()


def in_other_thread(function: Callable[[], object]) -> object:
    outcome: list[object] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(30)
    if errors:
        raise errors[0]
    return outcome[0]


@pytest.fixture(params=[in_main_thread, in_other_thread])
def run(request: pytest.FixtureRequest) -> Run:
    function: Run = request.param
    return function


def loop(seconds: float = 20.0) -> str:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        time.sleep(0.001)
    return "came to its end"


def later(function: Callable[[], object], seconds: float = 0.05) -> None:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def test_a_body_that_keeps_its_lock_returns(run: Run) -> None:
    assert run(lambda: Interruption().run(lambda: "done")) == "done"


def test_a_loss_is_raised_in_the_body_once(run: Run) -> None:
    interruption = Interruption()
    caught: list[LockLost] = []

    def body() -> str:
        later(lambda: interruption.interrupt(LOST))
        try:
            loop()
        except LockLost as error:
            caught.append(error)
        later(lambda: interruption.interrupt(LOST), 0.01)
        return loop(0.1)

    assert run(lambda: interruption.run(body)) == "came to its end"
    assert str(caught[0]) == str(LOST)
    assert interrupts(caught[0])
    assert not interrupts(LockLost("raised by the body itself"))
    assert str(pickle.loads(pickle.dumps(caught[0]))) == str(LOST)


def test_what_leaves_the_body_is_the_public_class(run: Run) -> None:
    interruption = Interruption()

    def body() -> str:
        later(lambda: interruption.interrupt(LOST))
        return loop()

    with pytest.raises(LockLost) as caught:
        run(lambda: interruption.run(body))
    assert type(caught.value) is LockLost
    assert (caught.value.name, caught.value.reason) == ("name", "a reason")


def test_a_loss_before_the_body_keeps_it_from_running(run: Run) -> None:
    interruption = Interruption()
    interruption.interrupt(LOST)
    with pytest.raises(LockLost):
        run(lambda: interruption.run(lambda: pytest.fail("the body ran")))


def test_a_loss_after_the_body_is_raised_nowhere(run: Run) -> None:
    interruption = Interruption()

    def outside() -> str:
        interruption.run(lambda: None)
        interruption.interrupt(LOST)
        return loop(0.05)

    assert run(outside) == "came to its end"


def test_the_loss_of_an_outer_lock_interrupts_the_inner_body(run: Run) -> None:
    outer, inner = Interruption(), Interruption()

    def body() -> object:
        later(lambda: outer.interrupt(LOST))
        return inner.run(loop)

    with pytest.raises(LockLost, match="name"):
        run(lambda: outer.run(body))
    assert run(lambda: running_here()) is False


def test_the_end_of_an_inner_body_takes_nothing_from_the_outer(run: Run) -> None:
    outer = Interruption()
    done: list[object] = []

    def body() -> object:
        done.append(Interruption().run(lambda: "inner"))
        later(lambda: outer.interrupt(LOST))
        return loop()

    with pytest.raises(LockLost):
        run(lambda: outer.run(body))
    assert done == ["inner"]


def test_each_of_two_bodies_in_the_main_thread_is_told_of_its_own_loss() -> None:
    """Of two signals that are sent at once only one arrives: they don't queue."""
    outer, inner = Interruption(), Interruption()
    caught: list[str] = []

    def lose_both() -> str:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
            outer.interrupt(LockLost("outer"))
            inner.interrupt(LockLost("inner"))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
            return loop()
        except LockLost as error:
            caught.append(error.name)
            return "caught"

    def body() -> None:
        try:
            inner.run(lose_both)
            loop()
        except LockLost as error:
            caught.append(error.name)

    outer.run(body)
    assert caught == ["inner", "outer"]


def test_a_body_that_was_told_already_is_let_alone(run: Run) -> None:
    """Seen by the chaos suite: raised again, it cut short what the body did about the first."""
    interruption = Interruption()

    def body() -> str:
        later(lambda: interruption.interrupt(LOST))
        interruption.raised_elsewhere()
        return loop(0.2)

    assert run(lambda: interruption.run(body)) == "came to its end"


def test_it_is_never_raised_outside_of_run(run: Run) -> None:
    """Many losses that hit at, or near, the end of a body."""
    chance = random.Random(7)
    stop = threading.Event()
    current: list[Interruption] = []

    def interrupt_often() -> None:
        while not stop.is_set():
            if current:
                current[-1].interrupt(LOST)
            time.sleep(chance.random() / 5000)

    def work() -> tuple[list[str], int]:
        ends_at = time.monotonic() + 1.0
        raised: list[str] = []
        finished = 0
        while time.monotonic() < ends_at:
            interruption = Interruption()
            current[:] = [interruption]
            try:
                interruption.run(lambda: sum(range(chance.randrange(3000))))
            except LockLost as error:
                raised.append(str(error))
            else:
                finished += 1
        return raised, finished

    thread = threading.Thread(target=interrupt_often)
    thread.start()
    try:
        raised, finished = run(work)  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert len(raised) > 10
    assert set(raised) == {str(LOST)}
    assert finished > 10


def test_a_sleep_in_the_main_thread_ends_at_once() -> None:
    interruption = Interruption()

    def body() -> None:
        later(lambda: interruption.interrupt(LOST))
        time.sleep(20)

    started = time.monotonic()
    with pytest.raises(LockLost):
        interruption.run(body)
    assert time.monotonic() - started < 5


def test_a_signal_of_somebody_else_reaches_its_own_handler() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, frame: seen.append(number))
    try:

        def body() -> str:
            os.kill(os.getpid(), signal.SIGURG)
            return loop(0.05)

        assert Interruption().run(body) == "came to its end"
        os.kill(os.getpid(), signal.SIGURG)
        loop(0.05)
        assert seen == [signal.SIGURG] * 2
    finally:
        signal.signal(signal.SIGURG, before)


HANDLERS = """
import faulthandler, os, signal, sys, threading, time
from celery_etcdlock.errors import LockLost
from celery_etcdlock.tasks.execution.interruption import Interruption

where, how, number = sys.argv[1], sys.argv[2], getattr(signal, sys.argv[3])
seen = []
dumps = open(sys.argv[4], "w")


def set_up():
    if how == "handler":
        signal.signal(number, lambda number, frame: seen.append(number))
    else:
        faulthandler.register(number, file=dumps)


def body():
    if where == "inside":
        set_up()
    threading.Timer(0.1, lambda: interruption.interrupt(LockLost("name"))).start()
    try:
        ends_at = time.monotonic() + 20
        while time.monotonic() < ends_at:
            time.sleep(0.01)
    except LockLost:
        os.kill(os.getpid(), number)
        return "lost"


if where == "before":
    set_up()
interruption = Interruption()
assert interruption.run(body) == "lost"
os.kill(os.getpid(), number)
time.sleep(0.01)
if how == "handler":
    assert seen == [number] * 2, seen
else:
    assert "File" in open(sys.argv[4]).read()
"""


@pytest.mark.parametrize(
    ("how", "number"),
    [("handler", "SIGUSR2"), ("faulthandler", "SIGUSR2"), ("handler", "SIGURG"), ("handler", "SIGALRM")],
)
@pytest.mark.parametrize("where", ["before", "inside"])
def test_handlers_of_the_users_own_go_on_and_a_loss_is_raised(
    where: str, how: str, number: str, tmp_path: Path
) -> None:
    """In a real process, where nobody else has handlers."""
    arguments = [sys.executable, "-c", HANDLERS, where, how, number, str(tmp_path / "dumps")]
    done = subprocess.run(arguments, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_who_is_profiled_afterwards_goes_on(where: str) -> None:
    """Python 3.11 hung in any profiler, debugger or coverage tool, once nothing had been taken back in its thread."""
    program = """
import cProfile, sys, threading
from celery_etcdlock.tasks.execution.interruption import Interruption
def work():
    Interruption().run(lambda: None)
    profile = cProfile.Profile()
    profile.runcall(lambda: None)
    print("went on", flush=True)
if sys.argv[1] == "main thread":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program, where], capture_output=True, text=True, timeout=30)
    assert done.stdout == "went on\n", done.stderr
