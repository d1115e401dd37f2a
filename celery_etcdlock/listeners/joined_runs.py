"""Which tasks took on another run's result lately: known to a worker's MainProcess, whichever of its processes it was.

The processes of the pool write into a table on memory that is mapped before the fork, and the MainProcess reads it; so
nothing is sent. A task has one place, by a digest of its id, and a later task may overwrite it. What is there counts
only with a digest of both ids in front of it: an entry that is overwritten, or half-written, is no entry.
"""

from __future__ import annotations

import mmap
from hashlib import blake2b

from celery_etcdlock.core.events import LockEvent, TaskDeduplicated

PLACES = 4096
DIGEST_BYTES = 12
PLACE_BYTES = 64
#: A longer task id isn't kept. Celery's own have 36 bytes.
MOST_ID_BYTES = PLACE_BYTES - DIGEST_BYTES - 1


class JoinedRuns:
    """A ``Listener``. To be made before the pool forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PLACES * PLACE_BYTES)

    def __call__(self, event: LockEvent, /) -> None:
        if not isinstance(event, TaskDeduplicated) or event.joined is None:
            return
        joined = event.joined.encode("utf-8", "replace")
        if len(joined) > MOST_ID_BYTES:
            return
        task_id = event.record.delivery.task_id
        start = _start(task_id)
        entry = bytes([len(joined)]) + _digest(task_id, joined) + joined
        self._memory[start : start + len(entry)] = entry

    def take(self, task_id: str) -> str | None:
        """The id of the task whose result this one took on, if that was lately. Told once: a retry runs itself."""
        start = _start(task_id)
        entry = self._memory[start : start + PLACE_BYTES]
        joined = entry[1 + DIGEST_BYTES : 1 + DIGEST_BYTES + entry[0]]
        known = joined and entry[1 : 1 + DIGEST_BYTES] == _digest(task_id, joined)
        if not known:
            return None
        self._memory[start] = 0
        return joined.decode("utf-8", "replace")


def _start(task_id: str) -> int:
    number = int.from_bytes(blake2b(_bytes(task_id), digest_size=8).digest(), "little")
    return number % PLACES * PLACE_BYTES


def _digest(task_id: str, joined: bytes) -> bytes:
    own = _bytes(task_id)
    return blake2b(len(own).to_bytes(8, "little") + own + joined, digest_size=DIGEST_BYTES).digest()


def _bytes(task_id: str) -> bytes:
    return task_id.encode("utf-8", "surrogatepass")
