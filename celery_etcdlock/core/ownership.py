"""Who owns a lock, and how long the owner may believe it.

**Ownership** is decided by revisions that the store hands out in one order for all. The keys under a lock's
name are ranked by ``create_revision``; the first ``limit`` of them own the lock and the rest wait in that order.
Contenders may disagree on the limit: the smallest one that is recorded counts.

**The fencing token** is the ``mod_revision`` of the write by which a key's owner became owner: the put itself
when nobody preceded, the promotion when somebody did. Nothing else ever rewrites the key, so the same number
also guards its deletion (rule 1).

**Trust.** The owner's key lives as long as its session's lease. The server counts a lease's TTL from when it
received the grant or renewal. We count from before we *sent* it, allow for a clock that runs slow by ``DRIFT``, and
stop ``MARGIN_SECONDS`` early. So we know that the lock is lost before anybody else can acquire it (rule 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from celery_etcdlock.core.record import Record

#: How much slower than the server's our clock may run, as a fraction: 20 times what NTP may slew.
DRIFT = 0.01

#: Seconds between the end of our trust and the earliest end of the lease.
MARGIN_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Key:
    """One key under a lock's name. ``record`` is ``None`` when it can't be read: then somebody else holds the key.

    ``lease`` is the one it lies on, 0 where that isn't known.
    """

    token: str
    create_revision: int
    mod_revision: int
    record: Record | None
    lease: int = 0


def find_key(keys: Iterable[Key], token: str) -> Key | None:
    return next((key for key in keys if key.token == token), None)


def preceding(keys: Iterable[Key], create_revision: int) -> list[Key]:
    """The keys that come before ``create_revision``, in order."""
    return sorted((key for key in keys if key.create_revision < create_revision), key=lambda key: key.create_revision)


def effective_limit(limit: int, keys: Iterable[Key]) -> int:
    """How many may own the lock: the smallest limit that anyone concerned has recorded."""
    return min([limit, *(key.record.limit for key in keys if key.record is not None)])


def leave_room(before: Sequence[Key], limit: int) -> bool:
    """Whether a key behind these, with this ``limit``, owns the lock: the rule of ownership, in one place."""
    return len(before) < effective_limit(limit, before)


def owners(keys: Iterable[Key]) -> list[Key]:
    """Those of ``keys``, all under one name, that come first enough to own the lock, in order. The rest wait."""
    found: list[Key] = []
    for key in sorted(keys, key=lambda key: key.create_revision):
        if not leave_room(found, key.record.limit if key.record is not None else 1):
            break
        found.append(key)
    return found


def owns(keys: Sequence[Key], token: str, limit: int) -> bool:
    """Whether ``token`` is among the first ``limit`` of ``keys``."""
    mine = find_key(keys, token)
    return mine is not None and leave_room(preceding(keys, mine.create_revision), limit)


def trust_deadline(sent_at: float, ttl_seconds: float) -> float:
    """When to stop trusting a lease that was granted or renewed by a request sent at ``sent_at``.

    Both times are on one clock that keeps counting through a suspend of the machine.
    """
    return sent_at + ttl_seconds * (1 - DRIFT) - MARGIN_SECONDS
