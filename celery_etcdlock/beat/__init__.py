"""A beat that can die: any number of ``celery beat`` processes, of which one is at work and the others stand by.

::

    celery -A proj beat -S celery_etcdlock.beat:EtcdScheduler

``EtcdScheduler`` runs another scheduler: the one that ``etcdlock_beat_scheduler`` names, made anew for each *term*, in
which this process holds the beat's lock. A process without the lock has no scheduler, opens no schedule file and asks
no database.

States of a process::

    STANDING BY ---> TAKING OVER ---> AT WORK ---> STANDING BY     the lock is lost, or somebody asked for it
         |                `-----------> STANDING BY                what the last one left can't be read or had
         `---------------------------------------> ENDED           the lock, or the queue position, is freed at once

*Standing by* is a queue position for the lock, woken by a watch (``locking.leader_election``). *Taking over* reads what
the last beat left (``core.beat_state``) and makes the scheduler. *At work*, each due entry goes through three steps
(``beat.scheduler_guard``): its tick is claimed in etcd, in a transaction that compares the lock's fencing token and the
entry's state; it is sent, if the lock can still be trusted (``beat.tick_sender``); it is confirmed, with the next claim
or before going to sleep.

*Trust.* Like any holder, a process trusts its lock until the trust deadline. It checks that before each send, and
interrupts a send that hangs then. A process that was paused between check and send may send one tick late. Its claim is
older than the next beat's, so nothing else of it has an effect.

A process that lost its lock before it could confirm what it sent leaves a mark, and the next beat looks for it.

*Failure.* A claim without an answer is repeated as it was; the entry waits for it. While the broker is unreachable the
tick stays claimed; it is sent when the broker is back. A process that dies between claim and confirmation leaves a tick
that may have been sent: the next beat sends it again under the same task id (``at_least_once``), or the claim counts as
sent (``at_most_once``). Everything else that fell due meanwhile fires once, by Celery's own rule: an entry whose last
run is too long ago is due.
"""

from celery_etcdlock.beat.scheduler import EtcdScheduler

__all__ = ["EtcdScheduler"]
