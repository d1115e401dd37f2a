"""Lock objects on a store in memory and on etcd: ``locks`` of one app, ``others`` of another client of the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks
from celery_etcdlock.core.operations import Release
from celery_etcdlock.standalone.held_lock import HeldLock

_names = itertools.count()


@pytest.fixture(params=["memory", "etcd"])
def new_locks(request: pytest.FixtureRequest) -> Iterator[Callable[[], EtcdLocks]]:
    """Makes clients of one store that is empty at first. In memory they are all the same one."""
    name = f"standalone{next(_names)}"
    made: list[EtcdLocks] = []

    def make() -> EtcdLocks:
        if made and request.param == "memory":
            return made[0]
        app = Celery(name, broker="memory://", set_as_current=False)
        app.conf.etcdlock_endpoints = "memory://"
        if request.param == "etcd":
            app.conf.etcdlock_endpoints = request.getfixturevalue("etcd").endpoint
        made.append(EtcdLocks.from_app(app))
        apps.append(app)  # whoever has the locks needs the app, too
        return made[-1]

    apps: list[Celery] = []
    yield make
    for each in made:
        each.close()


@pytest.fixture
def locks(new_locks: Callable[[], EtcdLocks]) -> EtcdLocks:
    return new_locks()


@pytest.fixture
def others(locks: EtcdLocks, new_locks: Callable[[], EtcdLocks]) -> EtcdLocks:
    return new_locks()


def lose(locks: EtcdLocks, held: HeldLock) -> None:
    """Somebody deletes the lock's key, and the holder's process finds out."""
    manager = locks.manager
    for lock in held.locks:
        manager.store.perform(Release(lock.name, lock.token, lock.fencing_token), 5.0)
        manager._keeper.renew(lock.session)
    assert held.lost
