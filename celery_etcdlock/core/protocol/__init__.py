"""The lock protocol, sans-IO: machines that emit operations and take replies and the time.

A machine is driven like this, by production's drivers in ``locking`` and by the tests' model checker alike::

    step = machine.start(now)
    while isinstance(step, Operation):
        step = machine.on(perform(step, until=machine.answer_by), now)
    # step is the machine's outcome

A machine never blocks, reads no clock and keeps no reference to a store. ``answer_by`` says until when the reply
to the operation just emitted is worth waiting for; a driver that got none by then answers ``Failed``.

* ``Acquire``: try-lock and ordered wait, in doubt as in calm (``acquire``).
* ``TakeOver``: a key changes hands, from a message to its worker and on; ``GiveBack``: it doesn't (``take_over``).
* ``AcquireEach`` and ``AcquireAll``: many try-locks in one round trip, each for itself, or all or none
  (``acquire_several``).
* ``LookAt``: who is there, less those whose time is over (``read_keys``).
* ``TakePosition``: a queue position for a message that comes back for it (``take_position``).
* ``Resolve``: make sure that an unanswered request never takes effect (``resolve_doubt``).
* ``ReleaseKey``: the guarded delete (``release``).
* ``DropEnded``: delete what stood for a message that has ended (``drop_ended``).
* ``Save``: states that the holder of a lock leaves for the next one (``save_states``).
* ``Open`` and ``Renew``: a session's life (``open_and_renew``).
"""

from celery_etcdlock.core.protocol.acquire import Acquire, Acquired, AcquireOutcome, Conflicted
from celery_etcdlock.core.protocol.acquire_several import AcquireAll, AcquireEach, EachAcquired
from celery_etcdlock.core.protocol.drop_ended import DropEnded, Ended
from celery_etcdlock.core.protocol.machine import Machine, SessionLost, Unavailable
from celery_etcdlock.core.protocol.open_and_renew import Open, Opened, Renew, Renewed
from celery_etcdlock.core.protocol.read_keys import LookAt, Seen
from celery_etcdlock.core.protocol.release import Released, ReleaseKey
from celery_etcdlock.core.protocol.resolve_doubt import Resolve, Resolved
from celery_etcdlock.core.protocol.save_states import GuardLost, Overtaken, Save, Saved
from celery_etcdlock.core.protocol.take_over import GiveBack, Refused, TakeOver
from celery_etcdlock.core.protocol.take_position import PositionTaken, TakePosition

__all__ = [
    "Acquire",
    "AcquireAll",
    "AcquireEach",
    "AcquireOutcome",
    "Acquired",
    "Conflicted",
    "DropEnded",
    "EachAcquired",
    "Ended",
    "GiveBack",
    "GuardLost",
    "LookAt",
    "Machine",
    "Open",
    "Opened",
    "Overtaken",
    "PositionTaken",
    "Refused",
    "ReleaseKey",
    "Released",
    "Renew",
    "Renewed",
    "Resolve",
    "Resolved",
    "Save",
    "Saved",
    "Seen",
    "SessionLost",
    "TakeOver",
    "TakePosition",
    "Unavailable",
]
