"""What travels in a message's headers, beside the count of its come-backs (``tasks.call``).

Locks that were taken when the message was published, its place in line, and what was found out about it then. Headers
come from outside: what doesn't have the right shape counts as absent, and the message is treated as one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.errors import LockConflict
from celery_etcdlock.locking.claim import Claim

__all__ = [
    "CLAIMS_HEADER",
    "DUPLICATE_HEADER",
    "JOIN_HEADER",
    "LINE_HEADER",
    "WAITS_FOR_HEADER",
    "Duplicate",
    "claims_in",
    "duplicate_in",
    "header",
    "line_in",
    "written_claims",
]

#: ``[[name, token, revision], ...]``: the locks that this message holds.
CLAIMS_HEADER = "etcdlock_claims"
#: ``[name, token, revision]``: its place in line.
LINE_HEADER = "etcdlock_line"
#: The name of the lock for which it came back.
WAITS_FOR_HEADER = "etcdlock_waits_for"
#: A ``Duplicate``: what it was found to be when it was published, and had to be published nevertheless.
DUPLICATE_HEADER = "etcdlock_duplicate"
#: A ``Duplicate``: whose result it takes on.
JOIN_HEADER = "etcdlock_joins"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A message whose lock ``name`` somebody held. ``policy`` is what becomes of it."""

    policy: str
    name: str
    holder: str
    task_id: str | None

    @classmethod
    def of(cls, policy: str, conflict: LockConflict) -> Duplicate:
        return cls(policy, conflict.name, conflict.holder, conflict.task_id)

    def written(self) -> list[Any]:
        return [self.policy, self.name, self.holder, self.task_id]

    @property
    def conflict(self) -> LockConflict:
        return LockConflict(self.name, self.holder, self.task_id)


def header(request: Any, name: str) -> object:
    """A header of a request, wherever Celery put it."""
    headers = getattr(request, "headers", None)
    if isinstance(headers, dict) and name in headers:
        return headers[name]
    return getattr(request, name, None)


def claims_in(request: Any) -> tuple[Claim, ...]:
    written = header(request, CLAIMS_HEADER)
    if not isinstance(written, list | tuple):
        return ()
    claims = [_claim(each) for each in written]
    return tuple(claim for claim in claims if claim is not None) if all(claims) else ()


def line_in(request: Any) -> Claim | None:
    return _claim(header(request, LINE_HEADER))


def duplicate_in(request: Any, name: str) -> Duplicate | None:
    match header(request, name):
        case [str(policy), str(lock), str(holder), (str() | None) as task_id]:
            return Duplicate(policy, lock, holder, task_id)
    return None


def written_claims(claims: Sequence[Claim]) -> list[list[Any]]:
    return [[claim.name, claim.token, claim.revision] for claim in claims]


def _claim(written: object) -> Claim | None:
    match written:
        case [str(name), str(token), int(revision)]:
            return Claim(name, token, revision)
    return None
