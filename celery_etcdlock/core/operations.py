"""What the protocol asks of a lock store; what a store may answer is in ``replies``.

Each operation is atomic: a store does it entirely or not at all, at one point of one total order (in etcd a
transaction, in Redis a script). A store that can't tell whether an operation took effect raises ``LockUnavailable``
with ``maybe_applied``; the protocol then sees ``Failed``.

A *session* is a lease with a key of its own on it. The ``mod_revision`` of that key is the session's *epoch*:
every operation that puts a key under a lock's name compares it. ``FenceSession`` raises it: from then on no earlier
request of ours can take effect, however late it arrives (rule 3).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from celery_etcdlock.core.record import Delivery, Record


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Create the lease, with the id we chose. Granted already counts as success. -> LeaseGranted"""

    lease: int
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class FenceSession:
    """Write the session's key anew on its lease, which moves the epoch. -> SessionFenced | SessionGone"""

    lease: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Renew the lease. A success alone proves nothing: ``CheckKeys`` must follow. -> KeptAlive | SessionGone"""

    lease: int


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key we believe to own: there, with this ``mod_revision``, or it is ours no more."""

    name: str
    token: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class CheckKeys:
    """Read, linearizably, whether the session's key and ours are still there. -> KeysSeen | SessionGone"""

    lease: int
    keys: tuple[HeldKey, ...]


@dataclass(frozen=True, slots=True)
class RevokeLease:
    """End the lease and delete all keys on it. Gone already counts as success. -> Done"""

    lease: int


@dataclass(frozen=True, slots=True)
class _Write:
    """A key under a lock's name that is written on our lease, if the session's epoch is as given."""

    lease: int
    epoch: int
    name: str
    token: str
    record: Record


@dataclass(frozen=True, slots=True)
class TryAcquire(_Write):
    """Put our key if all keys under the name were created at or before ``seen_revision`` (0: if there are none).

    Where the record's delivery has a ``call``, the reply also says whether that has run (``Release.done``): here, in
    ``Promote`` and in ``TryAll``.

    -> Owned | Present | EpochMoved | SessionGone. Repeating it finds our own key and answers ``Owned``.
    """

    seen_revision: int = 0


@dataclass(frozen=True, slots=True)
class Enqueue(_Write):
    """Put our key behind all others. -> Queued | Present when it was there already | EpochMoved | SessionGone"""


@dataclass(frozen=True, slots=True)
class Promote(_Write):
    """Rewrite a key, on our lease, if its ``mod_revision`` is as given and, with ``alone``, no key precedes it.

    So a waiter becomes owner, and a key changes hands: from a message to its worker, from a worker to the retry of its
    message, from a queued message to the newer one that replaces it. ``replaces``: leave a mark, too, that the
    delivery of this task id must not run any more (``LookForMark``).

    -> Owned | Present | EpochMoved | SessionGone
    """

    create_revision: int
    mod_revision: int
    alone: bool
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class TryEach:
    """Several try-locks in one round trip, each with its own outcome. One lease, one epoch, no name twice (rule 4).

    -> EachTried | EpochMoved | SessionGone
    """

    tries: tuple[TryAcquire, ...]


@dataclass(frozen=True, slots=True)
class TryAll:
    """As ``TryEach``, but all or none. -> Owned | EachTried, each outcome Present | EpochMoved | SessionGone"""

    tries: tuple[TryAcquire, ...]


@dataclass(frozen=True, slots=True)
class LookForMark:
    """Whether this task id was marked as replaced (``Promote.replaces``). -> MarkSeen"""

    task_id: str


@dataclass(frozen=True, slots=True)
class Unmark:
    """Delete that mark, if it is there: the call that was to replace the task never will. -> Done"""

    task_id: str


@dataclass(frozen=True, slots=True)
class MarkDone:
    """Put a mark that this delivery of this call has come to its end, on a lease that outlives it for a while (rule 7).

    Late or twice it does no harm. -> Done | SessionGone
    """

    lease: int
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class LookForDone:
    """Whether this delivery has come to its end, read linearizably (``MarkDone``). -> DoneSeen"""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class AskAge:
    """How old a lease that is never renewed is, by the store's own clock. -> LeaseAge | LeaseUnknown"""

    lease: int


@dataclass(frozen=True, slots=True)
class Look:
    """Read all keys under the name, linearizably. -> Present"""

    name: str


class StopsWaiting(Protocol):
    """Ends a wait from elsewhere (``locking.cancel_wait``)."""

    stopped: bool

    def waking(self, wake: Callable[[], object]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class AwaitChange:
    """Wait until a key under the name is deleted or, with ``token``, until that key is deleted or rewritten.

    Changes count from ``after_revision`` on, also those before the wait began. -> Changed, also when the time given is
    over or the store can't tell: the caller then reads again. ``stop`` ends it early.
    """

    name: str
    after_revision: int
    token: str | None = None
    stop: StopsWaiting | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Release:
    """Delete our key if its ``mod_revision`` is as we wrote it, else touch nothing.

    With ``done``, put that mark in the same moment. -> Released | NotHeld | SessionGone: the lease of the mark is gone
    """

    name: str
    token: str
    mod_revision: int
    done: MarkDone | None = None


@dataclass(frozen=True, slots=True)
class AskToRelease:
    """Ask the holder of this key as of ``mod_revision`` to release it. It reads that with its next ``CheckKeys``.

    The key itself isn't changed: its holder's guards compare it. ``by`` says who asks. -> Asked | NotHeld
    """

    name: str
    token: str
    mod_revision: int
    by: str


@dataclass(frozen=True, slots=True)
class StateWrite:
    """``value`` for ``key``, if it is as of ``seen_revision`` (0: isn't there). ``None`` deletes it."""

    key: str
    value: bytes | None
    seen_revision: int


@dataclass(frozen=True, slots=True)
class SaveStates:
    """Write all of these saved states, or none: if ``guard`` is held as we wrote it and each is as it was seen.

    They are what the holder of the lock ``name`` leaves for the next one; their keys have no lease.

    -> StatesSaved | StatesRefused with what is there now of these keys | NotHeld
    """

    guard: HeldKey
    name: str
    writes: tuple[StateWrite, ...]


@dataclass(frozen=True, slots=True)
class LoadStates:
    """Read all states saved under ``name``, linearizably. -> StatesSeen"""

    name: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Not for the store: wait so many seconds before going on. -> Changed"""

    seconds: float


#: What puts or deletes one key under one lock's name. Those on different names can share a transaction.
PlaceOperation = TryAcquire | Enqueue | Promote | Release
LockOperation = PlaceOperation | TryEach | TryAll | Look | AwaitChange | AskToRelease
SessionOperation = GrantLease | FenceSession | KeepAlive | CheckKeys | RevokeLease | AskAge
MarkOperation = LookForMark | Unmark | MarkDone | LookForDone
StateOperation = SaveStates | LoadStates
StoreOperation = LockOperation | SessionOperation | MarkOperation | StateOperation
Operation = StoreOperation | Pause
