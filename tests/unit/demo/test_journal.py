"""The demo's journal: from events to spans."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from examples.demo.journal import Journal, spans_of


def event(what: str, at: float, **facts: Any) -> dict[str, Any]:
    return {"what": what, "at": at, "key": "k", "worker": "alpha", "call": "c", "token": 3, "pid": 1, **facts}


def test_spans_are_in_the_order_of_their_starts() -> None:
    events = [
        event("enter", 2.0, call="b", pid=2),
        event("enter", 1.0),
        event("exit", 3.0),
        event("exit", 2.5, call="b", pid=2),
    ]
    assert [(span.call, span.start, span.end) for span in spans_of(events)] == [("c", 1.0, 3.0), ("b", 2.0, 2.5)]


def test_a_body_without_an_exit_still_runs() -> None:
    [span] = spans_of([event("enter", 1.0)])
    assert span.end is None
    assert not span.killed


def test_a_kill_ends_what_ran_on_that_worker_only() -> None:
    events = [
        event("enter", 1.0),
        event("enter", 1.1, call="other", worker="beta", pid=2),
        {"what": "killed", "at": 2.0, "worker": "alpha"},
        {"what": "freed", "at": 5.0, "call": "c"},
    ]
    killed, other = spans_of(events)
    assert (killed.end, killed.killed, killed.freed) == (2.0, True, 5.0)
    assert (other.end, other.killed, other.freed) == (None, False, None)


def test_a_call_that_is_delivered_again_has_two_spans() -> None:
    events = [
        event("enter", 1.0),
        {"what": "killed", "at": 2.0, "worker": "alpha"},
        event("enter", 6.0, worker="beta", pid=2),
        event("exit", 7.0, worker="beta", pid=2),
        {"what": "freed", "at": 5.0, "call": "c"},
    ]
    first, again = spans_of(events)
    assert (first.killed, first.freed, again.killed, again.freed) == (True, 5.0, False, None)


def test_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.events() == []

    def write(number: int) -> None:
        for count in range(100):
            journal.note("x", number=number, count=count, ballast="x" * 300)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(journal.events()) == 400


def test_a_line_that_is_not_whole_yet_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.note("whole")
    with journal.path.open("a") as file:
        file.write('{"what": "ha')
    assert [event["what"] for event in journal.events()] == ["whole"]
