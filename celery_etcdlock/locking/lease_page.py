"""A page of memory that a process shares with the children it forks, on which they write down their leases (rule 10).

A child writes the lease's id, which it chose itself, before the grant is sent, so its parent can revoke the lease of a
child that died at whatever point. It couldn't find it otherwise: all that the parent knows of the dead is a pid.

Each entry has two deadlines: until when the child itself made sure that the lease lives, and until when its parent did
(``child_lease_guardian``). Each is written by one process alone. They are on the clock that trust is measured on, which
all processes of a host share.

Entries are claimed and freed under a file lock, which the kernel releases when its holder dies. A child that finds no
place, or doesn't get the lock in time, goes without: its lease then runs out like that of a dead host.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from celery_etcdlock.native import allocate_owned_mutex, unlock

PAGE_BYTES = 1 << 16

# An entry is five numbers of eight bytes, each read and written at once. A pid of 0 means that it is free.
PID, LEASE, TTL, OWN_DEADLINE, GUARDIAN_DEADLINE = range(5)
NUMBERS = 5

LOCK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """One lease of one process, as it was written a moment ago."""

    pid: int
    lease: int
    ttl_seconds: int
    own_deadline: float
    guardian_deadline: float


class LeasePage:
    """See the module. Made by the parent before it forks; its own leases aren't written on it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._file.truncate(PAGE_BYTES)
        self._map = memoryview(mmap.mmap(self._file.fileno(), PAGE_BYTES))
        self._whole = self._map.cast("q")
        self._real = self._map.cast("d")
        self._owner = os.getpid()
        self._mutex = (self._owner, allocate_owned_mutex())

    @property
    def is_own(self) -> bool:
        """Whether this process made the page, rather than inherited it."""
        return os.getpid() == self._owner

    def enter(self, lease: int, ttl_seconds: int, deadline: float) -> None:
        """Write down a lease that is about to be granted to this process."""
        if self.is_own:
            return

        def write() -> None:
            at = self._find(0)
            if at is not None:
                self._whole[at + LEASE] = lease
                self._whole[at + TTL] = ttl_seconds
                self._real[at + OWN_DEADLINE] = deadline
                self._real[at + GUARDIAN_DEADLINE] = 0.0
                self._whole[at + PID] = os.getpid()  # last: the entry counts from now on

        self._exclusively(write)

    def renewed(self, lease: int, deadline: float) -> None:
        """This process renewed its lease."""
        at = self._find(os.getpid(), lease)
        if at is not None:
            self._real[at + OWN_DEADLINE] = deadline

    def guardian_deadline(self, lease: int, pid: int | None = None) -> float:
        """Until when the parent vouches for the lease of this process, or of ``pid``; 0 if it doesn't."""
        at = self._find(pid or os.getpid(), lease)
        return 0.0 if at is None else self._real[at + GUARDIAN_DEADLINE]

    def leave(self, lease: int) -> None:
        """This process's lease is gone, or is left to run out."""
        self.remove(os.getpid(), lease)

    def entries(self) -> list[Entry]:
        whole, real = self._whole, self._real
        return [
            Entry(*whole[at : at + OWN_DEADLINE], *real[at + OWN_DEADLINE : at + NUMBERS])
            for at in range(0, len(whole) - NUMBERS, NUMBERS)
            if whole[at + PID]
        ]

    def vouch(self, entry: Entry, deadline: float) -> None:
        """The parent renewed the lease of ``entry``."""
        at = self._find(entry.pid, entry.lease)
        if at is not None:
            self._real[at + GUARDIAN_DEADLINE] = deadline

    def remove(self, pid: int, lease: int) -> None:
        def free() -> None:
            at = self._find(pid, lease)
            if at is not None:
                self._whole[at + PID] = 0

        self._exclusively(free)

    def _find(self, pid: int, lease: int | None = None) -> int | None:
        for at in range(0, len(self._whole) - NUMBERS, NUMBERS):
            if self._whole[at + PID] == pid and (lease is None or self._whole[at + LEASE] == lease):
                return at
        return None

    def _exclusively(self, change: Callable[[], None]) -> None:
        """Among processes by a file lock, within one by a mutex. Not at all when they can't be had in time."""
        pid = os.getpid()
        if self._mutex[0] != pid:  # the parent's, which may have been held when it forked
            self._mutex = (pid, allocate_owned_mutex())
        try:
            try:
                if self._mutex[1].acquire(timeout=LOCK_SECONDS) and self._lock_file():
                    change()
            finally:
                self._unlock()
        finally:
            # Once more: a signal may have struck in the first.
            self._unlock()

    def _unlock(self) -> None:
        if self._mutex[1]._is_owned():
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        unlock(self._mutex[1])

    def _lock_file(self) -> bool:
        gives_up_at = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= gives_up_at:
                    return False
                time.sleep(0.001)
            else:
                return True
