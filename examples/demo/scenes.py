"""The three scenes. Each fires calls, waits for what becomes of all of them, and says what was seen."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from examples.demo.evidence import by_key, most_at_once
from examples.demo.journal import Span
from examples.demo.stage import WORKERS, Stage

RESULT_SECONDS = 30
#: Celery's states that are final.
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


def singleton(stage: Stage, *, short: bool) -> None:
    """Duplicates of one task, fired in volleys."""
    from examples.demo.tasks import rebuild_index

    volleys, calls = (2 if short else 4), 5
    stage.screen.title("1. A singleton: rebuild_index runs one at a time, duplicates are skipped")
    stage.screen.step(f"Firing {volleys} volleys of {calls} duplicates at both workers, each takes 0.6 s ...")
    results = []
    for _ in range(volleys):
        results += [rebuild_index.apply_async((0.6,)) for _ in range(calls)]
        time.sleep(0.85)
    states = wait_for_results(stage, results, "every rebuild_index to be run or skipped")
    count = Counter(states)
    spans = stage.spans("rebuild_index")
    ran, skipped = len(spans), count["REVOKED"]
    stage.screen.step(f"{len(results)} calls: {ran} bodies ran, {skipped} were skipped.")
    for result, state in zip(results, states, strict=True):
        if state == "REVOKED":
            stage.screen.remark(f"A skipped one's result is {state}: {result.result}")
            break
    stage.conclude("rebuild_index", "rebuild_index")
    if stage.with_lock:
        good = count["SUCCESS"] == ran >= 1 and ran + skipped == len(results)
        stage.check("rebuild_index: calls = ran + skipped", f"{len(results)} = {ran} + {skipped}", good)


def per_argument(stage: Stage, *, short: bool) -> None:
    """Several calls for each of several accounts, fired at once."""
    from examples.demo.tasks import sync

    accounts, each = ("anna", "ben", "cleo"), (2 if short else 4)
    stage.screen.title("2. A lock per argument: sync(account) runs one at a time for each account")
    stage.screen.step(f"Firing {each} calls for each of {', '.join(accounts)}; conflicts come back later ...")
    results = [sync.apply_async((account, number, 0.5)) for number in range(1, each + 1) for account in accounts]
    states = wait_for_results(stage, results, "every sync to have run")
    spans = stage.spans("sync")
    at_once, done = most_at_once(spans), states.count("SUCCESS")
    stage.screen.step(f"{done} of {len(results)} ran, up to {at_once} at once (of different accounts).")
    if stage.with_lock:
        for key, of_key in sorted(by_key(spans).items()):
            tokens = " < ".join(str(span.token) for span in of_key)
            stage.screen.remark(f"{key}: fencing tokens {tokens}")
    stage.conclude("sync", "sync")
    once = done == len(results) and Counter(span.call for span in spans) == Counter(result.id for result in results)
    stage.check("sync: all calls ran in the end, once each", f"{done} of {len(results)}", once)
    stage.check("sync: different accounts side by side", f"up to {at_once}", at_once > 1)


def kill_minus_nine(stage: Stage) -> None:
    """Kill the worker that holds a lock, in the middle of its task."""
    from examples.demo.tasks import KILLED_LOCK_TTL_SECONDS, REDELIVERY_SECONDS, close_book

    screen, key = stage.screen, "close_book march"
    screen.title(f"3. kill -9 of the worker that holds the lock (lock_ttl {KILLED_LOCK_TTL_SECONDS} s)")
    killed = close_book.apply_async(("march", 2.0))
    stage.wait(lambda: bool(stage.spans(key)), RESULT_SECONDS, "close_book to start")
    [first] = stage.spans(key)
    [survivor] = [name for name in WORKERS if name != first.worker]
    screen.step(f"{first.worker} runs close_book{_token(first)}. Firing two more at {survivor}, which must wait ...")
    # Into the survivor's own queue: the other would take some of them along.
    others = [close_book.apply_async(("march", 0.8), queue=survivor) for _ in range(2)]
    time.sleep(1.0)
    killed_at = _kill(stage, first.worker)
    screen.step(f"kill -9 of {first.worker} and its pool, {killed_at - first.start:.1f} s into its task.")
    if stage.with_lock:
        stage.wait(lambda: not stage.etcd.holds_lock_of(killed.id), 20, "etcd to end the dead worker's lease")
        freed_at = stage.journal.note("freed", call=killed.id)
        screen.step(f"etcd ended the dead worker's lease, {freed_at - killed_at:.1f} s after the kill.")
        stage.wait(lambda: bool(_after(stage, key, killed_at)), 20, "the lock to move on")
        second = _after(stage, key, killed_at)[0]
        moved = f"{second.start - killed_at:.1f} s after the kill"
        screen.step(f"The lock moved on to {second.worker}{_token(second)}, {moved}.")
        stage.check("close_book: the dead worker's lock moved on", moved, second.worker == survivor)
    if stage.broker.redelivers:
        screen.step(
            "The killed call isn't lost: it was never acknowledged, so Redis gives it out again, "
            f"{REDELIVERY_SECONDS} s after the first time (by default an hour) ..."
        )
        others.append(killed)
    else:
        screen.step("The killed call is gone: this broker forgets what it gave out. Redis and RabbitMQ don't.")
    states = wait_for_results(stage, others, "every close_book that can run to have run")
    again = [span for span in stage.spans(key) if span.call == killed.id and not span.killed and span.end]
    if again:
        screen.step(f"{survivor} ran the killed call again{_token(again[0])}.")
    stage.conclude(key, "close_book")
    done = states.count("SUCCESS")
    what = "all calls ran" if stage.broker.redelivers else "calls but the killed one ran"
    stage.check(f"close_book: {what} in the end", f"{done} of {len(others)}", done == len(others))


def wait_for_results(stage: Stage, results: Sequence[Any], what: str) -> list[str]:
    """The final states, once all have one."""
    states: dict[str, str] = {}

    def all_final() -> bool:
        for result in results:
            if result.id not in states:
                try:
                    state = result.state
                except ValueError:  # the file of a result that is just being written
                    continue
                if state in FINAL:
                    states[result.id] = state
        return len(states) == len(results)

    stage.wait(all_final, RESULT_SECONDS, what)
    return [states[result.id] for result in results]


def _kill(stage: Stage, name: str) -> float:
    worker = stage.workers.pop(name)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()  # also waits for its end
    return stage.journal.note("killed", worker=name)


def _after(stage: Stage, key: str, at: float) -> list[Span]:
    return [span for span in stage.spans(key) if span.start > at]


def _token(span: Span) -> str:
    return f" with fencing token {span.token}" if span.token else ""
