"""The page on which a worker's processes keep their figures."""

from __future__ import annotations

import os
from dataclasses import replace

from celery_etcdlock.listeners.figures import Figures
from tests.unit.listeners.events_of_a_lock import ACQUIRED, CONFLICTED, DEDUPLICATED, LOST, RELEASED, WAITING


def test_counts_and_held_locks() -> None:
    figures = Figures()
    figures(ACQUIRED)
    (held,) = figures.held()
    assert (held["lock"], held["id"], held["pid"]) == ("proj.sync:1", "owner-id", os.getpid())
    for event in (CONFLICTED, WAITING, DEDUPLICATED, RELEASED, ACQUIRED, LOST):
        figures(event)
    assert figures.held() == []
    assert figures.counts() == {"acquired": 2, "released": 1, "conflicts": 1, "lost": 1, "deduplicated": 1}


def test_more_locks_than_there_is_room_for_are_cut_and_still_counted() -> None:
    figures = Figures()
    for number in range(200):
        figures(replace(ACQUIRED, fencing_token=number))
    assert 0 < len(figures.held()) < 200
    assert figures.counts()["acquired"] == 200


def test_what_a_forked_process_wrote_is_counted_and_what_it_held_is_gone_with_it() -> None:
    figures = Figures(2)
    figures(ACQUIRED)
    pid = os.fork()
    if pid == 0:
        figures(ACQUIRED)
        os._exit(0)
    os.waitpid(pid, 0)
    assert figures.counts()["acquired"] == 2
