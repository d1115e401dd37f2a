"""Who may do what with a key: one table of kinds and transitions, and nothing is guessed from flags.

A key under a lock's name is of one kind (``record.KeyKind``) and belongs to one *run* of one message: a task id with
its count of retries and replacements (``Delivery.step``). How often the message was sent back to its queue meanwhile
makes no difference, and so all its copies are one.

====================  ===============================  =======================================================
kind                  put by                           may become (by whom)
====================  ===============================  =======================================================
held                  acquire, take-over, promotion    gone (its process; its lease's end) | handover, least
                                                       hold (its process)
claim                 a call, for its message          held (that run of the message) | gone (that run; the
                                                       worker that meets it revoked, expired or refused; the
                                                       caller who couldn't publish; its end) | a claim of the
                                                       newer call that replaces it
position              a message that waits             held (that message, when few enough precede) | a
                                                       position anew, later (that message, its worker) | gone
                                                       (that message; a later run of it; its end) | a position
                                                       of the newer call that replaces it
handover              a run that ends in a retry or    held (the run it stands for, and no copy of the one that
                      a replacement                    left it) | gone (the worker that meets that run revoked,
                                                       expired or refused; its end) | a claim of the newer call
                                                       that replaces it
least hold            the end of a run                 gone (its end)
window                a call                           gone (its end; a caller who couldn't publish)
====================  ===============================  =======================================================

*Trust.* We judge a key as we read it. So each write that follows compares the ``mod_revision`` that was read with it,
and does nothing if the key has changed since. A message's headers only say where to look.

*Records that can't be read* belong to somebody else: every function here answers no.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, KeyKind, Record


class Relation(Enum):
    """What a key is to a run that wants the lock."""

    #: Of another message, or unreadable: the policy decides.
    STRANGER = "stranger"
    #: For this run, which takes the key over.
    OURS = "ours"
    #: The queue position of this run: it waits with it.
    OUR_POSITION = "our position"
    #: Of the same message, and not ours to take: a copy that runs, or an earlier run that hasn't released it. Wait.
    KIN = "kin"
    #: Of an earlier run of this message, and nobody will use it any more.
    LEFT_BEHIND = "left behind"


#: Of messages that haven't started, or not anew: a newer call may replace them.
REPLACEABLE = frozenset({KeyKind.CLAIM, KeyKind.POSITION, KeyKind.HANDOVER})


def relation(record: Record | None, delivery: Delivery) -> Relation:
    """What a key with this record is to the run of ``delivery``."""
    if record is None or record.delivery.task_id != delivery.task_id:
        return Relation.STRANGER
    if record.kind not in REPLACEABLE:
        return Relation.KIN
    is_for = record.delivery.step
    if record.kind is KeyKind.HANDOVER:
        if record.successor is None:
            # Older versions don't write whom it is for: then it is for any later run.
            return Relation.OURS if delivery.follows(is_for) else Relation.KIN
        is_for = record.successor
    if is_for == delivery.step:
        return Relation.OUR_POSITION if record.kind is KeyKind.POSITION else Relation.OURS
    return Relation.LEFT_BEHIND if delivery.follows(is_for) else Relation.KIN


def ends_with(record: Record | None, delivery: Delivery) -> bool:
    """Whether a key is deleted when this run of a message ends without having started: it was for nothing else."""
    return relation(record, delivery) in (Relation.OURS, Relation.OUR_POSITION, Relation.LEFT_BEHIND)


def is_kept_out(delivery: Delivery, keys: Iterable[Key]) -> bool:
    """Whether a run must not acquire beside these keys, even within the limit: one of them is of its own message."""
    return delivery.is_delivered and any(
        relation(key.record, delivery) not in (Relation.STRANGER, Relation.OUR_POSITION) for key in keys
    )


def is_replaceable(key: Key) -> bool:
    """Whether a newer call may replace the message of this key."""
    return key.record is not None and key.record.kind in REPLACEABLE


def is_position(key: Key) -> bool:
    """Whether the key is the queue position of a message that waits."""
    return key.record is not None and key.record.kind is KeyKind.POSITION


def written_by_a_process(key: Key) -> bool:
    """Whether a process holds it or waits with it: whom one can ask to release it. Unreadable ones count as such."""
    return key.record is None or key.record.kind is KeyKind.HELD


def find(keys: Iterable[Key], delivery: Delivery, wanted: Relation) -> Key | None:
    """The first of ``keys`` that is ``wanted`` to this run."""
    return next((key for key in keys if relation(key.record, delivery) is wanted), None)
