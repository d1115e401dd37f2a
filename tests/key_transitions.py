"""The table of ``core.key_kinds``, for checks."""

from __future__ import annotations

from celery_etcdlock.core.record import KeyKind

#: What each kind may become; ``None`` is gone. The end of a key's time and of its lease come on top, for all of them.
TRANSITIONS: dict[KeyKind | None, frozenset[KeyKind | None]] = {
    None: frozenset({KeyKind.HELD, KeyKind.CLAIM, KeyKind.POSITION, KeyKind.WINDOW}),
    KeyKind.HELD: frozenset({KeyKind.HELD, KeyKind.HANDOVER, KeyKind.LEAST_HOLD, None}),
    KeyKind.CLAIM: frozenset({KeyKind.HELD, KeyKind.CLAIM, None}),
    KeyKind.POSITION: frozenset({KeyKind.HELD, KeyKind.POSITION, KeyKind.CLAIM, None}),
    KeyKind.HANDOVER: frozenset({KeyKind.HELD, KeyKind.CLAIM, None}),
    KeyKind.LEAST_HOLD: frozenset({None}),
    KeyKind.WINDOW: frozenset({None}),
}
