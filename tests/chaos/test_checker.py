"""The checker finds what it is for."""

from __future__ import annotations

from typing import Any

from tests.chaos.checker import count, recovery


def enter(at: float, entrance: int, task: str = "t", pid: int = 1) -> dict[str, Any]:
    return {"at": at, "event": "enter", "entrance": entrance, "task": task, "pid": pid, "helpers": []}


def leave(at: float, entrance: int, completed: bool = True) -> dict[str, Any]:
    return {"at": at, "event": "exit", "entrance": entrance, "completed": completed}


def test_one_after_the_other_is_no_overlap() -> None:
    counts = count([enter(1, 1), leave(2, 1), enter(2.1, 2, "u"), leave(3, 2)], ["t", "u"])
    assert (counts.overlaps, counts.overlaps_while_stopped, counts.lost, counts.twice) == (0, 0, 0, 0)
    assert counts.kept == 2


def test_an_overlap_and_one_with_a_stopped_holder() -> None:
    assert count([enter(1, 1), enter(1.5, 2, pid=2), leave(2, 1), leave(2, 2)]).overlaps == 1
    stopped = [enter(1, 1), {"at": 1.2, "event": "stopped", "pid": 1}, enter(1.5, 2, pid=2)]
    assert count([*stopped, leave(2, 2)]).overlaps_while_stopped == 1
    resumed = [*stopped[:2], {"at": 1.3, "event": "continued", "pid": 1}, *stopped[2:], leave(2, 2)]
    assert count(resumed).overlaps == 1


def test_a_body_ends_with_its_process() -> None:
    killed = [enter(1, 1), {"at": 1.2, "event": "killed", "pid": 1}, enter(1.5, 2, pid=2), leave(2, 2)]
    assert count(killed).overlaps == 0
    assert count(killed, ["t"]).lost == 0
    assert count(killed[:2], ["t"]).lost == 1


def test_a_task_that_came_to_its_end_twice() -> None:
    assert count([enter(1, 1), leave(2, 1), enter(3, 2), leave(4, 2)]).twice == 1
    assert count([enter(1, 1), leave(2, 1, completed=False), enter(3, 2), leave(4, 2)]).twice == 0


def test_stale_writes() -> None:
    events: list[dict[str, Any]] = [
        {"at": 1, "event": "stale write", "accepted": accepted} for accepted in (True, False)
    ]
    counts = count(events)
    assert (counts.stale_tried, counts.stale_accepted) == (2, 1)


def test_recovery_counts_from_the_fault_or_from_an_end_that_it_allowed() -> None:
    assert recovery([enter(1, 1), enter(4, 2)], 2) == 2
    assert recovery([enter(1, 1), leave(3, 1), enter(4, 2)], 2) == 1
    assert recovery([enter(1, 1), leave(3, 1, completed=False), enter(4, 2)], 2) == 2
    assert recovery([enter(1, 1)], 2) is None
