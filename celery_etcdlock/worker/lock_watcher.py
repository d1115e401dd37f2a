"""Watches the locks that messages wait for, in threads beside the worker's hub, and says whose turn it is.

One thread follows the deletions under the app's prefix, by one watch for all locks, while anybody waits. The other
reads the names that something happened to, decides (``core.ready_waiters``), and keeps queue positions from expiring.
While nothing happens etcd is asked for each name only now and then, because a watch may die silently; and when a key
that nobody renews expires, since that is no event: whoever reads it deletes it.

*Trust.* A decision here is a hint. A message that goes on acquires the lock by itself, with a pool slot in hand, and
waits again if it can't (rule 13). So a late or wrong hint costs a round trip, and never the lock.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from celery_etcdlock.core.expiry import SKEW_SECONDS
from celery_etcdlock.core.key_kinds import Relation, find, is_position, relation
from celery_etcdlock.core.lock_table import SnapshotOutdated
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.ready_waiters import Waiting, ready_waiters
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.locking.manager import LockManager
from celery_etcdlock.locking.outcomes import Claim

logger = logging.getLogger("celery_etcdlock")

RETRY_SECONDS = 1.0
#: Seconds between two looks at a name where nothing was seen to happen.
LOOK_SECONDS = 30.0
#: The same where a key has expired by this host's clock: etcd's clock decides when it has (``core.expiry``).
STANDS_SECONDS = 5.0
#: The same where another run, or a copy, of the same message is in the way.
SAME_MESSAGE_SECONDS = 1.0
#: How long a queue position is kept at a time, by this host's clock. It is extended after half of that.
KEEP_SECONDS = 120.0


@dataclass(eq=False)
class Waiter:
    """A message that waits for the lock ``name``.

    ``position`` is its queue position, which changes when it is extended. A redelivered message knows an old one, and
    gets its own back by its ``delivery``.
    """

    name: str
    delivery: Delivery
    limit: int
    position: Claim | None
    joins: str | None
    keep_at: float = 0.0

    @property
    def waiting(self) -> Waiting:
        return Waiting(self.limit, None if self.position is None else self.position.token, self.joins, self.delivery)


class LockWatcher:
    """``tell`` is called, in a thread of this, with those whose turn it is, and again until they are removed."""

    def __init__(
        self,
        open_inspector: Callable[[], Inspector],
        manager: Callable[[], LockManager],
        tell: Callable[[list[Waiter]], None],
    ) -> None:
        self._open_inspector = open_inspector
        self._manager = manager
        self._tell = tell
        self._mutex = threading.Lock()
        self._waiters: dict[str, list[Waiter]] = {}
        #: The looking thread's work: look at a name, or give up a waiter's position.
        self._names: queue.SimpleQueue[str | Waiter] = queue.SimpleQueue()
        self._queued: set[str] = set()
        #: When to look at a name once more, though nothing was seen to happen. The looking thread's own.
        self._look_again_at: dict[str, float] = {}
        self._watching = False
        self._looking = False

    def add(self, waiter: Waiter) -> None:
        with self._mutex:
            self._waiters.setdefault(waiter.name, []).append(waiter)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="celery-etcdlock-watch", daemon=True).start()
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="celery-etcdlock-look", daemon=True).start()
        self.look_at([waiter.name])

    def remove(self, waiter: Waiter) -> None:
        with self._mutex:
            waiters = self._waiters.get(waiter.name, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(waiter.name, None)

    def clear(self) -> None:
        with self._mutex:
            self._waiters.clear()

    def look_at(self, names: Iterable[str]) -> None:
        with self._mutex:
            new = [name for name in names if name not in self._queued]
            self._queued.update(new)
        for name in new:
            self._names.put(name)

    def give_up_positions(self, waiters: Iterable[Waiter]) -> None:
        """Let others go first: delete the waiters' queue positions."""
        for waiter in waiters:
            position, waiter.position = waiter.position, None
            if position is not None:
                self._names.put(waiter)

    # --- the watch ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            try:
                inspector = self._open_inspector()
                try:
                    self._follow(inspector)
                finally:
                    inspector.close()
            except (LockUnavailable, SnapshotOutdated) as error:
                logger.debug("the watch for locks broke and is restarted: %s", error)
            except Exception:
                logger.exception("celery-etcdlock: the watch for locks failed and is restarted")
            with self._mutex:
                if not self._waiters:
                    self._watching = False
                    return
            time.sleep(RETRY_SECONDS)

    def _follow(self, inspector: Inspector) -> None:
        is_first = True
        for segments in inspector.deletions(inspector.revision()):
            with self._mutex:
                names = list(self._waiters)
            # What happened before the watch began is found by a look.
            self.look_at(name for name in names if is_first or escape_name(name) in segments)
            is_first = False
            if not segments and not names:
                return

    # --- the looks ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        while True:
            try:
                wake_at = min(self._look_again_at.values(), default=math.inf)
                timeout = None if wake_at == math.inf else max(0.0, wake_at - time.monotonic())
                name = self._names.get(timeout=timeout)
            except queue.Empty:
                self.look_at([name for name, at in self._look_again_at.items() if at <= time.monotonic()])
                continue
            if isinstance(name, Waiter):
                self._manager().drop_ended(name.name, name.delivery, position_only=True)
                continue
            with self._mutex:
                self._queued.discard(name)
                waiters = list(self._waiters.get(name, ()))
            if not waiters:
                self._look_again_at.pop(name, None)
                continue
            self._look_again_at[name] = time.monotonic() + LOOK_SECONDS
            try:
                self._decide(name, waiters)
            except LockUnavailable as error:
                logger.debug("lock %r can't be read now: %s", name, error)
                time.sleep(RETRY_SECONDS)
                self.look_at([name])
            except Exception:
                logger.exception("celery-etcdlock: reading lock %r failed", name)

    def _decide(self, name: str, waiters: Sequence[Waiter]) -> None:
        keys = self._manager().claims.look(name)
        self._await_end(name, keys, waiters)
        _find_positions(waiters, keys)
        by_token = {key.token: key for key in keys}
        going: list[Waiter] = []
        staying: list[Waiter] = []
        for waiter, turn in zip(waiters, ready_waiters([each.waiting for each in waiters], keys), strict=True):
            # One whose position a newer call took goes on too: it finds that out, and ends.
            (going if turn or _is_superseded(waiter, by_token) else staying).append(waiter)
        if going:
            self._tell(going)
        for waiter in staying:
            if waiter.position is not None:
                self._keep(waiter, waiter.position, by_token.get(waiter.position.token))

    def _await_end(self, name: str, keys: Sequence[Key], waiters: Sequence[Waiter]) -> None:
        """Look at the name again for what no deletion shows: an expired key, or a lock left to the retry that waits."""
        ends = [key.record.until for key in keys if key.record is not None and key.record.until is not None]
        seconds = min(ends) + SKEW_SECONDS - time.time() if ends else math.inf
        if seconds <= 0:
            seconds = STANDS_SECONDS
        if any(find(keys, waiter.delivery, Relation.KIN) is not None for waiter in waiters):
            seconds = min(seconds, SAME_MESSAGE_SECONDS)
        self._look_again_at[name] = time.monotonic() + min(seconds, LOOK_SECONDS)

    def _keep(self, waiter: Waiter, position: Claim, mine: Key | None) -> None:
        """Extend the position. When it expires was written by another host's clock."""
        now = time.monotonic()
        if mine is None or mine.record is None or not is_position(mine) or now < waiter.keep_at:
            return
        kept = self._manager().claims.keep(position, mine.record, KEEP_SECONDS)
        if isinstance(kept, Claim):
            waiter.position = kept
            waiter.keep_at = now + KEEP_SECONDS / 2


def _is_superseded(waiter: Waiter, by_token: Mapping[str, Key]) -> bool:
    key = None if waiter.position is None else by_token.get(waiter.position.token)
    return key is not None and key.record is not None and key.record.delivery.task_id != waiter.delivery.task_id


def _find_positions(waiters: Iterable[Waiter], keys: Iterable[Key]) -> None:
    positions: dict[str, Key] = {}
    for key in keys:
        if key.record is not None and is_position(key):
            positions.setdefault(key.record.delivery.task_id, key)
    for waiter in waiters:
        mine = positions.get(waiter.delivery.task_id)
        if mine is not None and relation(mine.record, waiter.delivery) is Relation.OUR_POSITION:
            waiter.position = Claim(waiter.name, mine.token, mine.mod_revision)
