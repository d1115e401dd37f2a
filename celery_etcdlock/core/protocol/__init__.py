"""The lock protocol, sans-IO: machines that emit operations and take replies and the time.

A machine is driven like this, by production's drivers in ``locking`` and by the tests' model checker alike::

    step = machine.start(now)
    while isinstance(step, Operation):
        step = machine.on(perform(step, until=machine.answer_by), now)
    # step is the machine's outcome

A machine never blocks, reads no clock and keeps no reference to a store. ``answer_by`` says until when the reply
to the operation just emitted is worth waiting for; a driver that got none by then answers ``Failed``.

* ``Acquire``: try-lock and ordered wait, in doubt as in calm (``acquire``).
* ``Resolve``: make sure that an unanswered request never takes effect (``resolve``).
* ``Release``: the guarded delete (``release``).
* ``Open`` and ``Renew``: a session's life (``session``).
"""

from celery_etcdlock.core.protocol.acquire import Acquire, Acquired, AcquireOutcome, Conflicted
from celery_etcdlock.core.protocol.machine import Machine, SessionLost, Unavailable
from celery_etcdlock.core.protocol.release import Released, ReleaseKey, ReleaseOutcome
from celery_etcdlock.core.protocol.resolve import Resolve, Resolved
from celery_etcdlock.core.protocol.session import Open, Opened, Renew, Renewed

__all__ = [
    "Acquire",
    "AcquireOutcome",
    "Acquired",
    "Conflicted",
    "Machine",
    "Open",
    "Opened",
    "ReleaseKey",
    "ReleaseOutcome",
    "Released",
    "Renew",
    "Renewed",
    "Resolve",
    "Resolved",
    "SessionLost",
    "Unavailable",
]
