"""The operator's port: to see all locks of a prefix and to take one away. Needs no session and no worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from celery_etcdlock.core.lock_table import Change, KeyEntry, Traces
from celery_etcdlock.core.waiting_counts import WaitingCounts, add_up, read_note
from celery_etcdlock.core.worker_notes import NoteKind


class Inspector(Protocol):
    """Sees every lock under one prefix. Each method raises ``LockUnavailable`` when the store can't be asked."""

    def snapshot(self) -> tuple[list[KeyEntry], int]:
        """Every key as of one revision, and that revision."""

    def ttls(self, leases: Iterable[int]) -> dict[int, float]:
        """Seconds that each lease lives if nobody renews it any more. A lease that ended is missing."""

    def changes(self, after_revision: int) -> Iterator[list[Change] | None]:
        """What changes after ``after_revision``, for ever; ``None`` about once a second when nothing does.

        Raises ``SnapshotOutdated`` when changes were missed: take a new snapshot.
        """

    def revision(self) -> int:
        """The store's latest revision."""

    def deletions(self, after_revision: int) -> Iterator[set[str]]:
        """Like ``changes``, but only the segments of names under which a key was deleted; empty when none was."""

    def ask_to_release(self, entry: KeyEntry, by: str) -> bool:
        """Ask the holder to release it. False when the key is gone."""

    def is_there(self, entry: KeyEntry) -> bool:
        """Whether the key is still as it was seen."""

    def delete(self, entry: KeyEntry) -> bool:
        """Delete the key, if it is as it was seen: its lock is free at once, whatever its holder does."""

    def notes(self, kind: NoteKind) -> dict[str, str]:
        """What workers wrote, by the names that they wrote it under."""

    def write_note(self, kind: NoteKind, worker: str, text: str, seconds: int) -> None:
        """Leave a note for others, for so many seconds, in place of the one before."""

    def delete_note(self, kind: NoteKind, worker: str) -> None: ...

    def saved_states(self) -> dict[str, dict[str, bytes]]:
        """What the holders of locks keep for the next ones (``operations.SaveStates``), by lock and key."""

    def traces(self) -> Traces:
        """Whether anybody ever used this prefix; to be asked where no lock is held."""

    def close(self) -> None: ...


def waiting_counts(inspector: Inspector) -> WaitingCounts:
    """Messages that wait without a queue position, as all workers count them. Raises ``LockUnavailable``."""
    return add_up(map(read_note, inspector.notes(NoteKind.WAITING).values()))
