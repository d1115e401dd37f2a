"""The lock object as a state machine: real objects, driven at random by threads and tasks that share them.

Each actor is free, waiting, held or lost (``celery_etcdlock.standalone`` has the table). After each step:

* those who believe that they own the lock are those who should, and never more than its limit;
* each of them has a key among the owners', and nobody's but its own has gone;
* besides owners, each client has one place in line at most, while somebody waits, and none else is left.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_etcdlock import EtcdLocks, LockLost, NotLocked
from celery_etcdlock.core.operations import Release
from tests.contract.standalone.actors import Actor, Loop, TaskActor, ThreadActor
from tests.waiting import wait_for

__all__ = ["LockMachine"]

_names = itertools.count()
ACTORS = st.integers(0, 4)


class LockMachine(RuleBasedStateMachine):
    """``new_clients`` makes the two clients of one store."""

    new_clients: Callable[[], tuple[EtcdLocks, EtcdLocks]]
    with_tasks = True
    with_forks = True

    @initialize(limit=st.sampled_from([1, 1, 2]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.name = f"machine{next(_names)}"
        one, other = type(self).new_clients()
        self.clients = [one] if one is other else [one, other]
        self.loop = Loop() if self.with_tasks else None
        shared = one.lock(self.name, wait_timeout=None, limit=limit)
        self.actors: list[Actor] = [ThreadActor(one, shared), ThreadActor(one, shared)]
        self.actors.append(ThreadActor(other, other.lock(self.name, wait_timeout=None, limit=limit)))
        if self.loop is not None:
            shared_by_tasks = one.alock(self.name, wait_timeout=None, limit=limit)
            self.actors += [TaskActor(one, shared_by_tasks, self.loop) for _ in range(2)]
        self.holds: list[Actor] = []
        self.lost: list[Actor] = []

    def actor(self, number: int) -> Actor:
        return self.actors[number % len(self.actors)]

    @property
    def waiting(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.waits is not None]

    # --- what actors do ---------------------------------------------------------------------------------------

    @rule(number=ACTORS, seconds=st.sampled_from([0, 0, 0.03]))
    def acquire(self, number: int, seconds: float) -> None:
        actor = self.actor(number)
        if actor in self.holds or actor.waits is not None:
            return
        free = len(self.holds) < self.limit and not self.waiting
        got = actor.acquire(seconds)
        assert got is free
        if actor in self.lost:
            self.lost.remove(actor)  # either way: what was lost is forgotten when it is acquired anew
        if got:
            self.holds.append(actor)

    @rule(number=ACTORS)
    def wait(self, number: int) -> None:
        actor = self.actor(number)
        if actor in self.holds or actor.waits is not None:
            return
        if actor in self.lost:
            self.lost.remove(actor)
        actor.begin_to_wait()

    @rule(number=ACTORS)
    def release(self, number: int) -> None:
        actor = self.actor(number)
        if actor.waits is not None:
            return
        if actor in self.holds:
            self.holds.remove(actor)
            actor.release()
        elif actor in self.lost:
            self.lost.remove(actor)
            with pytest.raises(LockLost):
                actor.release()
        else:
            with pytest.raises(NotLocked):
                actor.release()

    @precondition(lambda self: self.holds)
    @rule(number=ACTORS)
    def lose(self, number: int) -> None:
        """Somebody deletes the key, and the process finds out."""
        actor = self.holds.pop(number % len(self.holds))
        held = actor.do(lambda: actor.lock.held)
        (lock,) = held.locks
        actor.client.manager.store.perform(Release(lock.name, lock.token, lock.fencing_token), 5.0)
        actor.client.manager._keeper.renew(lock.session)
        with pytest.raises(LockLost):
            held.check()
        self.lost.append(actor)

    @precondition(lambda self: self.waiting)
    @rule(number=ACTORS)
    def cancel(self, number: int) -> None:
        actor = self.waiting[number % len(self.waiting)]
        before = self.waiting
        actor.cancel()
        same = [actor] if isinstance(actor, TaskActor) else [one for one in before if one.lock is actor.lock]
        for one in same:
            assert one.waits is not None
            if one.waits.result(60):  # it was its turn just then
                self.holds.append(one)
            one.waits = None

    @precondition(lambda self: self.holds)
    @rule(number=ACTORS)
    def end(self, number: int) -> None:
        """A thread or task ends that holds the lock: it is released for it."""
        actor = self.holds.pop(number % len(self.holds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            actor.end()

    @precondition(lambda self: self.with_forks)
    @rule()
    def fork(self) -> None:
        """A child of the process has nothing, and what it does changes nothing."""
        locks = [actor.lock for actor in self.actors if isinstance(actor, ThreadActor)]
        helds = [actor.do(lambda: actor.lock.held) for actor in self.holds]  # noqa: B023
        child = os.fork()
        if child == 0:
            status = 1
            try:
                logging.disable(logging.CRITICAL)
                assert not any(lock.owned() or lock.remaining for lock in locks)
                assert all(held.lost and not held.remaining for held in helds)
                for lock in locks:
                    lock.cancel()
                    with pytest.raises(NotLocked):
                        lock.release()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    # --- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def nobody_believes_wrongly(self) -> None:
        self.settle()
        assert len(self.holds) <= self.limit
        helds = []
        for actor in self.actors:
            if actor.waits is None:
                assert actor.do(actor.lock.owned) is (actor in self.holds)
                assert (actor.do(lambda: actor.lock.remaining) > 0) is (actor in self.holds)  # noqa: B023
            if actor in self.holds:
                held = actor.do(lambda: actor.lock.held)  # noqa: B023
                held.check()
                helds.append(held.locks[0].token)
        keys = self.clients[0].holders(self.name)
        assert {key.token for key in keys[: len(helds)]} == set(helds), "the owners are those who believe"

    def settle(self) -> None:
        """Whose turn it is gets the lock; who was cancelled leaves the line."""
        while self.waiting and len(self.holds) < self.limit:
            wait_for(self._somebody_got_it, "a waiter gets what is free")
            for one in self.waiting:
                if one.waits is not None and one.waits.done():
                    assert one.waits.result() is True
                    one.waits = None
                    self.holds.append(one)
        places = sum(any(one.client is client for one in self.waiting) for client in self.clients)
        wait_for(
            lambda: len(self.clients[0].holders(self.name)) == len(self.holds) + places,
            "the keys are those of owners, and one place in line for each client",
        )

    def _somebody_got_it(self) -> bool:
        return any(actor.waits.done() for actor in self.actors if actor.waits is not None)

    def teardown(self) -> None:
        if not hasattr(self, "actors"):
            return
        try:
            for one in self.waiting:
                one.lock.cancel()
            for one in self.waiting:
                assert one.waits is not None
                if one.waits.result(60):
                    self.holds.append(one)
                one.waits = None
            for actor in self.holds:
                actor.release()
            wait_for(lambda: not self.clients[0].holders(self.name), "nothing is left")
        finally:
            for actor in self.actors:
                actor.close()
            if self.loop is not None:
                self.loop.close()


def settings_of(machine: type[LockMachine], **attributes: Any) -> type[LockMachine]:
    return type(machine.__name__, (machine,), attributes)
