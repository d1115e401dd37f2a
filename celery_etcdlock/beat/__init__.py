"""A beat that can die: any number of ``celery beat`` processes, of which one is at work and the others stand by.

::

    celery -A proj beat -S celery_etcdlock.beat:EtcdScheduler

``EtcdScheduler`` puts another scheduler to work: the one that ``etcdlock_beat_scheduler`` names, made anew for each
*term*, in which this process holds the beat's lock. A process without the lock has no scheduler, opens no schedule file
and asks no database.

States of a process::

    STANDING BY ---> TAKING OVER ---> AT WORK ---> STANDING BY     the lock is lost, or somebody asked for it
         |                `-----------> STANDING BY                what the last one left can't be read or had
         `---------------------------------------> ENDED           the lock, or the place in line, goes at once

*Standing by* is a place in line for the lock, woken by a watch (``locking.leader_election``). *Taking over* reads what
the last one left (``core.beat_state``) and makes the scheduler. *At work*, each due entry goes through three steps
(``beat.scheduler_guard``): its tick is claimed in etcd, in a transaction that compares the lock's fencing token and the
entry's state; it is sent, if the lock can be trusted still; it is confirmed, with the next claim or before going to
sleep.

*Trust.* What a process believes of its lock ends at the trust deadline, like any holder's. It is asked before each
sending, and a sending that hangs then is interrupted. A process that was paused between that question and its sending
may send one tick late; its claim is older than the next one's, so that nothing else of it has an effect.

A process that lives and lost its lock before it could confirm what it sent leaves a mark, for which the next one looks.

*Failure.* A claim without an answer is repeated as it was; the entry waits for it. A broker that is away keeps the tick
claimed, and it is sent when the broker is back. A process that dies between claim and confirmation leaves a tick that
was sent or not: the next one sends it again under the same task id (``at_least_once``), or there is no confirmation and
the claim stands for it (``at_most_once``). All else that fell due meanwhile is fired once, by Celery's own rule: an
entry whose last run lies too far back is due.
"""

from celery_etcdlock.beat.scheduler import EtcdScheduler

__all__ = ["EtcdScheduler"]
