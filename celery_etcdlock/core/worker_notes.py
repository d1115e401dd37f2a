"""What workers leave under the prefix for others to read: short texts, each on a lease of its own.

No lock depends on one. A worker that ends deletes its notes; those of a worker that died expire.
"""

from __future__ import annotations

from enum import Enum


class NoteKind(Enum):
    """Kinds of notes, by where they lie under the prefix. A worker has one of each kind at most."""

    #: The options of its locked tasks (``worker.option_mismatch``).
    OPTIONS = "worker"
    #: How many messages it has that wait for each lock (``core.waiting_counts``).
    WAITING = "waiting"


#: Longer ones aren't read: nobody of ours wrote them.
MOST_NOTE_BYTES = 256 * 1024
