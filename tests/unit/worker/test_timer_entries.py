"""A parked message's timer, where Celery (before 5.7) doesn't keep it with the message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous.timer import Timer

from celery_etcdlock.worker import timer_entries


def test_an_entry_is_found_in_the_timer_and_cancelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer_entries, "CELERY_KEEPS_ENTRIES", False)
    timer = Timer()
    consumer, request, other = SimpleNamespace(timer=timer), SimpleNamespace(), SimpleNamespace()
    called: list[Any] = []
    timer.call_after(9, called.append)
    timer.call_after(9, called.append, (other,))
    entry = timer.call_after(9, called.append, (request,))
    assert timer_entries.timer_entry(consumer, request) is entry
    timer_entries.cancel(consumer, request)
    assert entry.canceled
    assert timer_entries.timer_entry(consumer, request) is None
    timer_entries.cancel(consumer, request)
    assert timer_entries.timer_entry(consumer, other) is not None
