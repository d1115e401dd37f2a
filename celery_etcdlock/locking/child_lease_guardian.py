"""Looks after the leases of forked children, from their parent: revokes those of the dead, renews for the hindered.

**The dead.** A child's lease is revoked as soon as the child is gone: killed, out of memory, ended in the middle of a
release. Gone means that the kernel says so, not that somebody sent a signal: until then the child may still write.
Nothing else hangs on the lease, so all its locks are free at once, and requests of the child's that are still on their
way name a session that is no more.

**The hindered.** A child renews its lease itself, in a thread, which can't run while a C call holds the GIL. So when a
child that lives is late, its parent renews for it and writes on the shared page until when it vouches. This extends the
child's trust by the same rule as its own renewal does (rule 9): counted from before the request was sent, and only if a
read sees the session's key after it. What the parent doesn't look at are the keys of the single locks; the child's own
next renewal does. It doesn't renew for a child that is stopped (``SIGSTOP``), nor where it can't tell.

**The forgotten.** A lease far past its deadlines is trusted by nobody. It is revoked too, and its entry freed.
"""

from __future__ import annotations

import logging
import os
import threading
from enum import Enum

from celery_etcdlock.core.protocol import Renew, Renewed
from celery_etcdlock.locking.clock import Clock, boot_time
from celery_etcdlock.locking.driver import drive
from celery_etcdlock.locking.lease_page import Entry, LeasePage
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.open_sessions import revoke
from celery_etcdlock.native import Alarm, allocate_mutex, process_lives, start_thread

logger = logging.getLogger("celery_etcdlock")

#: Seconds between two looks at the children. A look costs a system call for each of them.
LOOK_SECONDS = 0.2

#: A child is late when less of its TTL is left than this: by then it has missed its own renewal and a repeat or two.
LATE = 0.5

#: Seconds, besides a TTL, after which nobody can mean an entry any more.
FORGOTTEN_SECONDS = 60.0


class _State(Enum):
    RUNS = "runs"
    STOPPED = "stopped"
    GONE = "gone"
    UNKNOWN = "unknown"


class Guardian:
    """See the module. Its thread is a real one; ``store`` is for its use alone."""

    def __init__(self, page: LeasePage, store: LockStore, clock: Clock = boot_time) -> None:
        self._page = page
        self._store = store
        self._clock = clock
        self._pid = os.getpid()
        self._alarm = Alarm()
        self._looking = allocate_mutex()
        self._stopped = False

    def start(self) -> None:
        start_thread(self._run, "celery-etcdlock-guardian")

    def finish(self, seconds: float) -> None:
        """Go on until no child has a lease any more, for so many seconds at most, then stop. For a worker's end."""
        ends_at = self._clock() + seconds
        while os.getpid() == self._pid and self._page.entries() and self._clock() < ends_at:
            self.look()
            threading.Event().wait(LOOK_SECONDS / 4)
        self._stopped = True
        self._alarm.ring()

    def look(self) -> None:
        """Do what has to be done now."""
        with self._looking:
            for entry in self._page.entries():
                self._look_at(entry)

    def _run(self) -> None:
        while not self._stopped and os.getpid() == self._pid:
            try:
                self.look()
            except Exception:
                logger.exception("celery-etcdlock: looking after the leases of child processes failed and goes on")
            self._alarm.wait(LOOK_SECONDS)

    def _look_at(self, entry: Entry) -> None:
        now = self._clock()
        deadline = max(entry.own_deadline, entry.guardian_deadline)
        state = _state(entry.pid)
        if state is _State.GONE:
            if self._revoke(entry) or now > deadline + entry.ttl_seconds:
                self._page.remove(entry.pid, entry.lease)
        elif now > deadline + entry.ttl_seconds + FORGOTTEN_SECONDS:
            self._revoke(entry)
            self._page.remove(entry.pid, entry.lease)
        elif state is _State.RUNS and now < deadline < now + entry.ttl_seconds * LATE:
            self._renew(entry, deadline)

    def _revoke(self, entry: Entry) -> bool:
        is_revoked = revoke(entry.lease, self._store)
        if is_revoked:
            logger.info("celery-etcdlock: revoked lease %x of process %s, which is gone", entry.lease, entry.pid)
        return is_revoked

    def _renew(self, entry: Entry, deadline: float) -> None:
        answer_by = min(deadline, self._clock() + max(LOOK_SECONDS, entry.ttl_seconds / 8))
        outcome = drive(Renew(lease=entry.lease, keys=(), deadline=answer_by), self._store, self._clock)
        if isinstance(outcome, Renewed) and _state(entry.pid) is _State.RUNS:
            self._page.vouch(entry, outcome.deadline)
            logger.debug("renewed lease %x for process %s, which was late", entry.lease, entry.pid)


def _state(pid: int) -> _State:
    """What a process does; ``GONE`` once it is a zombie, or reaped."""
    waitid = getattr(os, "waitid", None)
    if waitid is not None:
        try:
            # WNOWAIT leaves it for whoever reaps it.
            event = waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        except OSError:  # reaped, or not our own child but a child's
            pass
        else:
            if event is None:
                return _State.RUNS
            return _State.STOPPED if event.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED) else _State.GONE
    return _State.UNKNOWN if process_lives(pid) else _State.GONE
