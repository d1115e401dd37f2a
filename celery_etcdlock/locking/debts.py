"""Pays what a session owes: releases that got no answer, and tokens in doubt (``session.Debt``)."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery_etcdlock.core.protocol import Machine, ReleaseKey, Resolve, Unavailable
from celery_etcdlock.locking.clock import Clock
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.session import Debt, Session
from celery_etcdlock.locking.store import LockStore

__all__ = ["pay"]

#: How many debts are paid at a time, so that nothing else waits long.
DEBTS_AT_A_TIME = 20


def pay(
    session: Session,
    store: LockStore,
    clock: Clock,
    answer_by: float,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Pay some of its debts; false when the store couldn't be brought to it by ``answer_by``."""
    for debt in session.debts()[:DEBTS_AT_A_TIME]:
        machine = _machine(debt, session.lease, answer_by)
        if isinstance(drive(machine, store, clock, observe=session.observe, sleep=sleep), Unavailable):
            return False
        session.settle(debt)
    return True


def _machine(debt: Debt, lease: int, answer_by: float) -> Machine[object]:
    if debt.mod_revision is not None:
        return ReleaseKey(name=debt.name, token=debt.token, mod_revision=debt.mod_revision, deadline=answer_by)
    return Resolve(lease=lease, name=debt.name, token=debt.token, deadline=answer_by, attempt=debt.attempt)
