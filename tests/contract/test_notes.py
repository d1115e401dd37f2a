"""What workers leave for others to read, in each store that can be looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock.app.celery_settings import settings_of
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.wiring import open_inspector
from tests.waiting import wait_for

_numbers = itertools.count()
NewInspector = Callable[[], Inspector]


@pytest.fixture(params=["redis", "etcd"])
def new_inspector(request: pytest.FixtureRequest) -> Iterator[NewInspector]:
    server: Any = request.getfixturevalue(request.param)
    app = Celery("notes", set_as_current=False)
    app.conf.etcdlock_endpoints = server.url(3) if request.param == "redis" else server.endpoint
    app.conf.etcdlock_prefix = f"/contract-notes-{next(_numbers)}/"
    opened: list[Inspector] = []

    def open_one() -> Inspector:
        opened.append(open_inspector(settings_of(app)))
        return opened[-1]

    yield open_one
    for inspector in opened:
        inspector.close()


def test_a_note_is_there_until_it_is_replaced_deleted_or_over(new_inspector: NewInspector) -> None:
    worker, reader = new_inspector(), new_inspector()
    waiting, options = NoteKind.WAITING, NoteKind.OPTIONS
    assert reader.notes(waiting) == {}
    worker.write_note(waiting, "w1@häst:7", "one", 60)
    worker.write_note(waiting, "w1@häst:7", "two", 60)
    worker.write_note(options, "w1@häst:7", "other", 60)
    new_inspector().write_note(waiting, "w2", "three", 1)
    assert reader.notes(waiting)["w1@häst:7"] == "two"
    assert reader.notes(options) == {"w1@häst:7": "other"}
    wait_for(lambda: reader.notes(waiting) == {"w1@häst:7": "two"}, "the short one is over")
    worker.delete_note(waiting, "w1@häst:7")
    assert reader.notes(waiting) == {}
    assert reader.notes(options) == {"w1@häst:7": "other"}
    worker.delete_note(waiting, "w1@häst:7")
    worker.write_note(waiting, "w1@häst:7", "again", 60)
    assert reader.notes(waiting) == {"w1@häst:7": "again"}


def test_a_note_that_is_written_again_stands_for_its_whole_time(new_inspector: NewInspector) -> None:
    """The short one's lease must not take the later one along."""
    worker = new_inspector()
    worker.write_note(NoteKind.WAITING, "w1", "short", 2)
    worker.write_note(NoteKind.WAITING, "w1", "long", 60)
    worker.write_note(NoteKind.WAITING, "mark", "over when the first would be", 3)
    wait_for(lambda: "mark" not in worker.notes(NoteKind.WAITING), "the time of the short one is over")
    assert worker.notes(NoteKind.WAITING) == {"w1": "long"}
