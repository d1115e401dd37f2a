"""What a lock store may answer to the operations of ``operations``, each of which names its own.

``term`` is the leader's as the answering server knew it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_etcdlock.core.operations import HeldKey
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.errors import LockUnavailable


@dataclass(frozen=True, slots=True)
class Reply:
    """What a machine is told after an operation."""


@dataclass(frozen=True, slots=True)
class Failed(Reply):
    """No answer, or an error. ``error.maybe_applied`` says whether the operation may have taken effect."""

    error: LockUnavailable


@dataclass(frozen=True, slots=True)
class StoreReply(Reply):
    """What a lock store may answer."""


@dataclass(frozen=True, slots=True)
class LeaseGranted(StoreReply):
    """The lease lasts ``ttl_seconds``: what was asked for, or the server's least if that is more."""

    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class SessionFenced(StoreReply):
    epoch: int
    term: int


@dataclass(frozen=True, slots=True)
class KeptAlive(StoreReply):
    ttl_seconds: int
    term: int


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """Somebody asked us to release a key of our session (``AskToRelease``).

    ``revision`` is the store's when it was asked: a later holding under the same token isn't meant.
    """

    token: str
    by: str
    revision: int


@dataclass(frozen=True, slots=True)
class KeysSeen(StoreReply):
    """``missing`` are those keys that aren't there as we wrote them; ``asked`` may be of any key of the session."""

    term: int
    missing: frozenset[HeldKey]
    asked: tuple[ReleaseAsked, ...] = ()


@dataclass(frozen=True, slots=True)
class Owned(StoreReply):
    """We own the lock; ``revision`` is that of the write by which we became owner.

    Where a repeat finds what an earlier try did, somebody may have rewritten the key since: then it isn't as of
    ``revision`` any more.

    ``has_run``: whether this run of this call has come to its end before; ``None`` where it wasn't asked.
    """

    revision: int
    has_run: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class EachTried(StoreReply):
    """The outcome of each try, in their order."""

    outcomes: tuple[Owned | Present, ...]


@dataclass(frozen=True, slots=True)
class MarkSeen(StoreReply):
    replaced: bool


@dataclass(frozen=True, slots=True)
class DoneSeen(StoreReply):
    done: bool


@dataclass(frozen=True, slots=True)
class LeaseAge(StoreReply):
    """The lease was granted at least ``seconds`` ago.

    A leader counts from when it began to lead, so the lease may be older than that, never younger.
    """

    seconds: float
    term: int


@dataclass(frozen=True, slots=True)
class LeaseUnknown(StoreReply):
    """The server that was asked knows no such lease. It may not know it yet, so this alone frees nothing."""


@dataclass(frozen=True, slots=True)
class Present(StoreReply):
    """The keys under the name, in order of creation, as of ``revision``.

    To a waiter that isn't owner yet, these may be as few as ``Queued`` has. ``has_run`` as in ``Owned``.
    """

    keys: tuple[Key, ...]
    revision: int
    has_run: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Queued(StoreReply):
    """Our key was put at ``revision``; ``keys`` are those under the name just after that, in order of creation.

    At least the first ``limit`` and one more, the one just before ours, and ours.
    """

    keys: tuple[Key, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class EpochMoved(StoreReply):
    """Nothing was written: the session's key has another revision than the operation named."""

    epoch: int


@dataclass(frozen=True, slots=True)
class SessionGone(StoreReply):
    """Nothing was written: the session's key or lease is gone, and all its keys with it."""


@dataclass(frozen=True, slots=True)
class Changed(StoreReply):
    pass


@dataclass(frozen=True, slots=True)
class Released(StoreReply):
    pass


@dataclass(frozen=True, slots=True)
class NotHeld(StoreReply):
    """The key wasn't there as we wrote it: gone, or somebody else's. Nothing was deleted."""


@dataclass(frozen=True, slots=True)
class Asked(StoreReply):
    pass


@dataclass(frozen=True, slots=True)
class Done(StoreReply):
    pass


@dataclass(frozen=True, slots=True)
class State:
    """One saved state (``SaveStates``), as of ``revision``."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class StatesSaved(StoreReply):
    revision: int


@dataclass(frozen=True, slots=True)
class StatesRefused(StoreReply):
    """Nothing was written: one of the states at least isn't as it was seen. ``states`` are those that are there."""

    states: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class StatesSeen(StoreReply):
    states: tuple[State, ...]
