"""Beats as an operator sees them: who is at work and since when, who stands by, and each entry's last and next tick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_etcdlock.core.beat_state import EntryState, Phase, Unreadable, WorkState, decode_state
from celery_etcdlock.core.check_results import CheckResult, broken, ok, warning
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry, described

#: What the names of all beats' locks begin with.
BEAT_PREFIX = "beat:"
#: An entry is overdue when its next tick lies so many seconds back.
OVERDUE_SECONDS = 60.0


@dataclass
class BeatView:
    """All beats that stand for one another. ``work`` is what the one at work wrote, or the last one that was."""

    name: str
    work: WorkState | None = None
    entries: list[EntryState] = field(default_factory=list)
    unreadable: int = 0
    owner: KeyEntry | None = None
    standbys: tuple[KeyEntry, ...] = ()


def beats_of(saved_states: Mapping[str, Mapping[str, bytes]], locks: Iterable[LockEntry]) -> list[BeatView]:
    """``saved_states`` are those of each beat by the name of its lock."""
    views: dict[str, BeatView] = {}
    for name, states in saved_states.items():
        view = views[name] = BeatView(name)
        for value in states.values():
            state = decode_state(value)
            if isinstance(state, WorkState):
                view.work = state
            elif isinstance(state, EntryState):
                if state.absent_since is None:
                    view.entries.append(state)
            elif isinstance(state, Unreadable):
                view.unreadable += 1
        view.entries.sort(key=lambda one: one.name)
    for lock in locks:
        # Somebody may stand by before anybody has been at work.
        if lock.name in views or lock.name.startswith(BEAT_PREFIX):
            view = views.setdefault(lock.name, BeatView(lock.name))
            view.owner = lock.owners[0] if lock.owners else None
            view.standbys = lock.waiters
    return [views[name] for name in sorted(views)]


def beat_as_json(view: BeatView, most_entries: int | None = None) -> dict[str, Any]:
    """For ``--json`` and the web page. Arguments of tasks are nowhere in it. Times are Unix times."""
    work = view.work
    return {
        "at_work": None if view.owner is None else described(view.owner),
        "since": work.since if work is not None and view.owner is not None else None,
        "takeovers": 0 if work is None else work.takeovers,
        "standing_by": [described(entry) for entry in view.standbys],
        "unreadable": view.unreadable,
        "entries": [
            {
                "entry": one.name,
                **{name: getattr(one, name) for name in ("task", "schedule", "count", "task_id")},
                "last": one.last_run_at if one.count else None,
                "due": one.due_at,
                "next": one.next_at,
                "state": one.phase.value,
            }
            for one in view.entries[:most_entries]
        ],
    }


def beat_check_results(view: BeatView, now: float) -> Iterable[CheckResult]:
    """What ``doctor`` says of it. ``now`` is Unix time."""
    subject = f"beat {view.name.removeprefix(BEAT_PREFIX)}"
    if view.unreadable:
        text = f"{view.unreadable} states are of a newer version of celery-etcdlock: older beats don't schedule"
        yield broken(subject, text, "upgrade all beats")
    if view.owner is None:
        remedy = "start one: celery -A proj beat -S celery_etcdlock.beat:EtcdScheduler"
        yield broken(subject, "none is at work: nothing is scheduled", remedy)
        return
    record = view.owner.key.record
    who = "somebody" if record is None else f"{record.host}, pid {record.pid}"
    if view.standbys:
        yield ok(subject, f"at work on {who}, {len(view.standbys)} standing by, {len(view.entries)} entries")
    else:
        yield warning(subject, f"at work on {who}, and nobody stands by", "start a second one, on another host")
    if overdue := [one for one in view.entries if one.next_at is not None and now - one.next_at > OVERDUE_SECONDS]:
        text = f"{len(overdue)} entries are overdue by more than {OVERDUE_SECONDS:.0f} s, such as {overdue[0].name!r}"
        yield warning(subject, text, "see the log of the beat at work: is the broker away?")
    if ahead := [one for one in view.entries if one.last_run_at > now + OVERDUE_SECONDS]:
        text = f"{len(ahead)} entries ran last in the future, such as {ahead[0].name!r}"
        yield warning(subject, text, "the clock of a host that was at work is wrong: run NTP there")
    claimed = [one for one in view.entries if one.phase is Phase.CLAIMED]
    if doubtful := [one for one in claimed if now - one.last_run_at > OVERDUE_SECONDS]:
        text = f"{len(doubtful)} ticks are claimed and not confirmed, such as one of {doubtful[0].name!r}"
        yield warning(subject, text, "they wait for the broker: see the log of the beat at work")
