"""What must hold for the messages of one history, judged from its record alone. Each finding is a line of text.

* *ends*: each message that was published ends, and says why if it didn't run; one that had to run did;
* *once*: no run of a message comes to its end twice, and one id never runs twice at once;
* *limit*: no more bodies at once than may hold the lock, where it is held while they run;
* *lifetime*: nobody gets a lock that stands for a message, from when its call returned to where its lifetime ends;
* *told*: a call that was left out was told of a message of this lock that had it then, and a result is its own task's;
* *left*: no key is left once all is quiet, and a last call runs.

All times are of one clock that all processes share. Where a moment is known only roughly (a lock is let go some time
after its body's end), the finding is left out rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.chaos.messages.history import CallRecord, HistoryRecord
from tests.chaos.messages.plan import GHOST_PENDING_SECONDS, UNIQUE_SECONDS

__all__ = ["PROPERTIES", "Finding", "check", "is_expiry"]

PROPERTIES = ("ends", "once", "limit", "lifetime", "told", "left")
#: After its end, for so long a lock may be there still: a reply that was lost, a machine that is busy.
SLACK_SECONDS = 8.0
FOREVER = float("inf")
#: So long before a warning of an etcd that doesn't answer, its silence began, at most.
TROUBLE_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    what: str
    text: str


@dataclass
class _Body:
    task_id: str
    step: tuple[int, int]
    entered: float
    left: float = FOREVER
    completed: bool = False


def check(record: HistoryRecord) -> list[Finding]:
    return [
        *_check_ends(record),
        *_check_once(record),
        *_check_limit(record),
        *_check_lifetime(record),
        *_check_told(record),
        *_check_left(record),
    ]


def _bodies(call: CallRecord) -> list[_Body]:
    bodies: dict[str, _Body] = {}
    for event in call.events:
        if event["event"] == "enter":
            step = (event["retries"], event["replaced"])
            bodies[event["run"]] = _Body(event["id"], step, event["at"])
        elif event["event"] == "exit" and event["run"] in bodies:
            bodies[event["run"]].left = event["at"]
            bodies[event["run"]].completed = event["completed"]
    return sorted(bodies.values(), key=lambda body: body.entered)


def _published(record: HistoryRecord) -> list[CallRecord]:
    return [call for call in record.calls if call.task_id is not None and not call.call.doomed and call.error is None]


def _says(call: CallRecord) -> str:
    return f"{call.call.label} ({call.task_id}): {call.state} {str(call.result)[:160]}"


# --- ends -------------------------------------------------------------------------------------------------------


def _check_ends(record: HistoryRecord) -> Iterator[Finding]:
    kind = record.history.kind
    for call in record.calls:
        if call.error is not None:
            yield Finding("ends", f"{call.call.label}: the call raised {call.error}")
    for call in _published(record):
        if call.dropped and call.state in ("PENDING", "RETRY"):
            continue
        if call.state not in ("SUCCESS", "FAILURE", "REVOKED"):
            yield Finding("ends", f"doesn't end: {_says(call)}")
        elif call.state == "SUCCESS" and not _ran(call) and not (kind.policy == "join" and _joined(record, call)):
            yield Finding("ends", f"success without a body of its own: {_says(call)}")
        elif call.state != "SUCCESS" and not _may_end_so(record, call):
            yield Finding("ends", f"no reason to end so: {_says(call)}")
    published = _published(record)
    if published and not any(_ran(call) or call.call.has_own_trouble for call in published):
        yield Finding("ends", "nobody ran")


def _ran(call: CallRecord) -> bool:
    return any(body.completed for body in _bodies(call))


def _joined(record: HistoryRecord, call: CallRecord) -> bool:
    return isinstance(call.result, dict) and call.result.get("id") in {other.task_id for other in record.calls}


def _may_end_so(record: HistoryRecord, call: CallRecord) -> bool:
    """Whether a message may end without success, and with these words."""
    text, kind = str(call.result), record.history.kind
    own = call.call
    if call.revoked_at is not None and call.state == "REVOKED" and ("revoked" in text or "terminated" in text):
        return True
    if (
        own.expires is not None
        and call.state == "REVOKED"
        and (is_expiry(text) or text.endswith(("revoked", "terminated")))
    ):
        return True  # Celery revokes the id of what has expired, and so ends its copies
    if call.state == "FAILURE" and "it ran to its end" in text:
        return _ran(call)  # its worker was hurt before Celery stored how
    if own.strike is not None and call.state == "FAILURE" and "SoftTimeLimit" in text:
        return True
    others = [other for other in _published(record) if other is not call]
    if "not run:" in text and call.state == "REVOKED":
        if "newer call took its place" in text:
            return kind.policy == "replace" and any(_came_later(other, call) for other in others)
        return kind.policy in ("skip", "join") and not _held_from_its_call(record, call)
    if "LockConflict" in text and call.state == "FAILURE":
        return kind.policy == "raise" and not _held_from_its_call(record, call)
    if "LockLost" in text and call.state == "FAILURE":
        return kind.policy == "replace" and any(_came_later(other, call) for other in others)
    if kind.policy == "join":
        # The holder's end is its own.
        return any(other.state == call.state and other.call.has_own_trouble for other in others)
    return False


def is_expiry(text: str) -> bool:
    """Whether these are the words of a message that has expired; a lifetime is called so, too."""
    return "expired" in text.replace("until_expired", "")


def _came_later(other: CallRecord, call: CallRecord) -> bool:
    """Whether it may count as newer: by its call, or by when a worker met it, which is the order of those that wait."""
    met = [event["at"] for event in other.events if event["event"] == "start"]
    return other.ended > call.ended or any(at > call.ended for at in met)


def _held_from_its_call(record: HistoryRecord, call: CallRecord) -> bool:
    """Whether its message had its lock, so that nobody could be in its way."""
    return record.history.kind.lifetime in ("until_executing", "until_executed", "until_expired") and _claimed(call)


def _claimed(call: CallRecord) -> bool:
    first = next((event for event in call.events if event["event"] == "published"), None)
    return first is not None and first["claimed"]


# --- once, limit ------------------------------------------------------------------------------------------------


def _check_once(record: HistoryRecord) -> Iterator[Finding]:
    for call in _published(record):
        bodies = _bodies(call)
        ends = Counter(body.step for body in bodies if body.completed)
        for step, number in ends.items():
            if number > 1:
                yield Finding("once", f"run {step} came to its end {number} times: {_says(call)}")
        for earlier, later in combinations(bodies, 2):
            if later.entered < earlier.left:
                yield Finding("once", f"runs twice at once, {earlier.step} and {later.step}: {_says(call)}")


def _check_limit(record: HistoryRecord) -> Iterator[Finding]:
    kind = record.history.kind
    if not kind.holds_while_running:
        return
    moments = []
    for call in _published(record):
        for body in _bodies(call):
            moments += [(body.entered, 1, call), (body.left, -1, call)]
    inside = 0
    for at, change, call in sorted(moments, key=lambda moment: (moment[0], moment[1])):
        inside += change
        if inside > kind.limit and change > 0:
            yield Finding("limit", f"{inside} bodies at once at {at:.2f}, the last of {_says(call)}")


# --- lifetime ---------------------------------------------------------------------------------------------------


def _stands(record: HistoryRecord, call: CallRecord) -> tuple[float, float]:
    """From when until when, at least, the lock that this call took stands for its message."""
    kind = record.history.kind
    if not _claimed(call):
        return FOREVER, FOREVER
    since = call.ended
    if kind.lifetime == "until_expired":
        return since, call.began + UNIQUE_SECONDS
    bounds = []
    if kind.ghosts:
        bounds.append(call.began + GHOST_PENDING_SECONDS)
    bounds += [at for at in (call.revoked_at, call.lost_at) if at is not None]
    if call.call.expires is not None:
        bounds.append(call.began + call.call.countdown + call.call.expires)
    if kind.lifetime == "until_executed":
        bodies = _bodies(call)
        completed = [body.left for body in bodies if body.completed]
        failed = [body.left for body in bodies if not body.completed]
        bounds += [max(completed)] if completed else []
        bounds += failed
    else:
        bounds += [event["at"] for event in call.events if event["event"] == "start"]
    # Where etcd doesn't answer when a lock changes hands, it is free; the warning may come a little later.
    bounds += [at - TROUBLE_SECONDS for at in record.troubles if at > since][:1]
    return since, min(bounds, default=FOREVER)


def _check_lifetime(record: HistoryRecord) -> Iterator[Finding]:
    kind = record.history.kind
    if not kind.at_call or kind.policy == "replace":
        return
    calls = _published(record)
    stand = {call.task_id: _stands(record, call) for call in calls}
    for call in calls:
        others = [stand[other.task_id] for other in calls if other is not call]
        if _claimed(call) and _number(others, call.began, call.ended) >= kind.limit:
            yield Finding("lifetime", f"took at its call what stood for another: {_says(call)}")
        if kind.lifetime != "until_executed":
            continue
        for body in _bodies(call):
            if _number(others, body.entered, body.entered) >= kind.limit:
                yield Finding("lifetime", f"entered at {body.entered:.2f} while the lock stood: {_says(call)}")


def _number(stand: list[tuple[float, float]], since: float, until: float) -> int:
    return sum(begin < since and until < end for begin, end in stand)


# --- told -------------------------------------------------------------------------------------------------------


def _check_told(record: HistoryRecord) -> Iterator[Finding]:
    by_id = {call.task_id: call for call in record.calls if call.task_id is not None}
    for call in record.calls:
        if call.told is not None:
            other = by_id.get(call.told)
            if other is None or other is call:
                yield Finding("told", f"{call.call.label} was told of {call.told}, which is no call of this lock")
            elif call.began > _had_until(record, other):
                yield Finding(
                    "told", f"{call.call.label}, at {call.began:.2f}, was told of one long over: {_says(other)}"
                )
        if call.task_id is None or call.state != "SUCCESS" or not isinstance(call.result, dict):
            continue
        theirs: dict[str, Any] = call.result
        if theirs.get("name") != record.history.name:
            yield Finding("told", f"the result of another lock: {_says(call)}")
        elif theirs.get("id") != call.task_id and record.history.kind.policy != "join":
            yield Finding("told", f"another's result: {_says(call)}")


def _had_until(record: HistoryRecord, call: CallRecord) -> float:
    """Until when, at most, the message may have had the lock."""
    kind = record.history.kind
    if call.call.doomed:
        return call.ended + GHOST_PENDING_SECONDS + SLACK_SECONDS
    moments = [event["at"] for event in call.events]
    last = max(moments, default=FOREVER)
    if kind.lifetime == "until_expired":
        last = max(last, call.ended + UNIQUE_SECONDS)
    return last + SLACK_SECONDS if call.state in ("SUCCESS", "FAILURE", "REVOKED") else FOREVER


# --- left -------------------------------------------------------------------------------------------------------


def _check_left(record: HistoryRecord) -> Iterator[Finding]:
    for key in record.left:
        yield Finding("left", f"a key is left: {key}")
    if record.probe is not None:
        yield Finding("left", f"a last call doesn't run: {record.probe}")
