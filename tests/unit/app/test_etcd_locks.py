"""What an app's locks keep alive, and for how long."""

from __future__ import annotations

import gc
import weakref

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks


@pytest.mark.parametrize("is_used", [False, True], ids=["never asked for a lock", "closed"])
def test_an_app_that_nobody_uses_any_more_is_forgotten_with_its_locks(is_used: bool) -> None:
    def made() -> weakref.ref[Celery]:
        app = Celery("gone", broker="memory://", set_as_current=False)
        app.conf.update(etcdlock_endpoints="memory://")
        locks = EtcdLocks.from_app(app)
        assert EtcdLocks.from_app(app) is locks
        assert locks.settings.in_memory
        if is_used:
            with locks.lock("a"):
                pass
            locks.close()
        return weakref.ref(app)

    gone = made()
    gc.collect()
    assert gone() is None


def test_an_app_whose_locks_are_open_is_kept_until_they_are_closed() -> None:
    """With the end of the process at the latest, they are: its lease is revoked."""
    app = Celery("kept", broker="memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints="memory://")
    locks, kept = EtcdLocks.from_app(app), weakref.ref(app)
    assert locks.holders("a") == ()
    del app, locks
    gc.collect()
    app_again = kept()
    assert app_again is not None
    EtcdLocks.from_app(app_again).close()
