"""When a key's time is over, and who may say so.

Only keys that nobody renews have a time: claims and queue positions of messages that haven't started, handovers, fixed
windows and least holds. A holder that runs has none: its lease decides. Anybody may delete a key whose time is over, as
it was read. So a wrong judgement frees a lock that others count on.

*Two clocks.* The record says when the key expires: by its writer's wall clock (``until``), and by the age that its
lease has then on the store's clock (``by_lease``). Nobody renews that lease, so all see the same age. The wall clock is
only the cheap trigger. When a key *seems* expired, we ask the store how old the lease is at least. If it isn't old
enough, the key is kept for as long as is missing, whatever our wall clock says. So a clock that is ahead costs requests
and frees nothing. With a clock that is behind the writer's, a key is kept longer by as much, at most until its lease
ends.

*Elections.* A new leader counts the age of each lease anew. Once the term isn't that of the lease's grant any more, the
age is too low and can't say that a key has expired. So ``LONGEST_SKEW_SECONDS`` after ``until`` the wall clock decides.
Without that, a window of a day would last for two after an election in its last hour (rule 11). A record of an older
version, without ``by_lease``, is judged in the same way.

*Trust.* A leader that was replaced and doesn't know it yet can't overstate the age: nobody renews these leases, so they
are at least that old. But such a leader may not know the lease at all. That proves nothing, and we look again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, inf

from celery_etcdlock.core.operations import AskAge, Release
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import EndByLease, Record
from celery_etcdlock.core.replies import LeaseAge, LeaseUnknown

#: Seconds by which healthy wall clocks differ: the store is asked so much later than ``until``.
SKEW_SECONDS = 1.0

#: Seconds by which a wall clock may be ahead without freeing anything, even where the store's clock can't tell.
LONGEST_SKEW_SECONDS = 900.0

#: Least seconds between two requests about one key.
LEAST_PAUSE_SECONDS = 0.05
#: Seconds until the next request about a key whose lease the store didn't know.
UNKNOWN_SECONDS = 1.0


def seems_expired(key: Key, wall_time: float) -> bool:
    """Whether the key has expired by this wall clock. For display only: it must not free anything."""
    return wall_time >= _until(key) + SKEW_SECONDS


def ending(
    record: Record, attempt: str | None, seconds: float, *, now: float, wall_offset: float, opened_at: float, term: int
) -> Record:
    """The record of a key that expires ``seconds`` after ``now``, on a lease that is granted once and never renewed.

    ``opened_at`` is a time before the grant was sent, ``term`` the leader's once it was granted.
    """
    until = round(now + wall_offset + seconds, 3)
    return replace(record, attempt=attempt, until=until, by_lease=EndByLease(ceil(now - opened_at + seconds), term))


@dataclass(frozen=True, slots=True)
class Expiry:
    """What one contender knows of the ends of keys. Immutable; ``judged`` gives the next one.

    Its times are on the contender's steady clock. ``wall_offset`` is the difference to its wall clock; ``None``: no key
    counts as expired. ``standing`` are keys that the store was asked about, and until when it said that they last.
    """

    wall_offset: float | None
    standing: tuple[tuple[str, int, float], ...] = ()

    def first_over(self, keys: Iterable[Key], now: float) -> Key | None:
        """The first of ``keys`` whose time may be over: put ``question`` about it."""
        return next((key for key in keys if now >= self.ask_at(key)), None)

    def ask_at(self, key: Key) -> float:
        """When the key's time may be over; infinite for one that has no end."""
        if self.wall_offset is None:
            return inf
        for token, mod_revision, stands_until in self.standing:
            if (token, mod_revision) == (key.token, key.mod_revision):
                return stands_until
        return _until(key) + (SKEW_SECONDS if _has_lease(key) else LONGEST_SKEW_SECONDS) - self.wall_offset

    def question(self, name: str, key: Key) -> AskAge | Release:
        """How old its lease is; or, where its lease can't tell, the guarded delete itself."""
        return AskAge(key.lease) if _has_lease(key) else Release(name, key.token, key.mod_revision)

    def judged(self, key: Key, age: LeaseAge | LeaseUnknown, asked_at: float, now: float) -> Expiry | None:
        """This knowledge and that the key hasn't expired; ``None`` when it has."""
        if isinstance(age, LeaseUnknown):
            return self._stands(key, now + UNKNOWN_SECONDS)
        assert key.record is not None
        assert key.record.by_lease is not None
        assert self.wall_offset is not None
        end = key.record.by_lease
        if age.seconds >= end.age_seconds:
            return None
        # Counted from the request: the answer may have taken long.
        stands_until = asked_at + end.age_seconds - age.seconds
        if age.term != end.term:
            decided_at = _until(key) + LONGEST_SKEW_SECONDS - self.wall_offset
            if now >= decided_at:
                return None
            stands_until = min(stands_until, decided_at)
        return self._stands(key, max(stands_until, now + LEAST_PAUSE_SECONDS))

    def _stands(self, key: Key, until: float) -> Expiry:
        others = (each for each in self.standing if each[0] != key.token)
        return replace(self, standing=(*others, (key.token, key.mod_revision, until)))


def _until(key: Key) -> float:
    return inf if key.record is None or key.record.until is None else key.record.until


def _has_lease(key: Key) -> bool:
    return key.lease != 0 and key.record is not None and key.record.by_lease is not None
