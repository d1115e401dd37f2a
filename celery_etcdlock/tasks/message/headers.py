"""What travels in a message's headers, and how it is read.

They hold the locks that were taken when the message was published, its queue position, what was found out about it
then, and how often it was rescheduled. Headers come from outside: one of the wrong shape or size counts as absent. No
reader raises, whatever the headers are.

*Whose they are.* Code that calls another task with ``headers=self.request.headers`` sends ours along. So they name the
task id that they are for (``CALL_HEADER``), and on a message with another id none of them counts. What they say of keys
in etcd only tells where to look: the key itself decides (``core.key_kinds``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery.app.task import Context

from celery_etcdlock.core.about import IsShown
from celery_etcdlock.errors import LockConflict
from celery_etcdlock.locking.outcomes import Claim

#: ``[task id, random]``: the call that the message was published for, and so whose these headers are.
CALL_HEADER = "etcdlock_call"
#: ``[[name, token, revision], ...]``: the locks that this message holds.
CLAIMS_HEADER = "etcdlock_claims"
#: ``[name, token, revision]``: its queue position.
POSITION_HEADER = "etcdlock_line"
#: The name of the lock for which it was rescheduled.
WAITS_FOR_HEADER = "etcdlock_waits_for"
#: A ``Duplicate``: it was found to be one, but had to be published.
DUPLICATE_HEADER = "etcdlock_duplicate"
#: A ``Duplicate``: whose result it takes on.
JOIN_HEADER = "etcdlock_joins"
#: How often we rescheduled the message, and at which ``retries``: a later retry counts anew.
RESCHEDULES_HEADER = "etcdlock_comebacks"
RETRIES_HEADER = "etcdlock_retries"
#: Unix time at which the message was first rescheduled because of a conflict.
WAITING_SINCE_HEADER = "etcdlock_waiting_since"
#: ``[seconds, seconds]``: how long it had waited when it was rescheduled, and the delay that it got then.
WAITED_HEADER = "etcdlock_waited"
#: Set on a redelivered copy that we rescheduled, since its broker then takes it for new.
COPY_HEADER = "etcdlock_copy"
#: When a copy that we sent back expires, in ISO format. In place of Celery's own, by which a worker would discard the
#: copy and have its result say so, whatever became of the first.
EXPIRES_HEADER = "etcdlock_expires"

#: Those that are written when a message is rescheduled, and don't count for its retry.
OF_ONE_RUN = (
    *(POSITION_HEADER, WAITS_FOR_HEADER, JOIN_HEADER, RESCHEDULES_HEADER),
    *(WAITING_SINCE_HEADER, WAITED_HEADER, EXPIRES_HEADER),
)
OUR_HEADERS = (CALL_HEADER, CLAIMS_HEADER, DUPLICATE_HEADER, RETRIES_HEADER, COPY_HEADER, *OF_ONE_RUN)

#: What is longer isn't ours.
LONGEST_TEXT = 20_000
MOST_CLAIMS = 128
GREATEST_COUNT = 1_000_000_000
GREATEST_REVISION = 2**63 - 1
GREATEST_NUMBER = 1e12


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A message whose lock ``name`` somebody held. ``policy`` is what becomes of it."""

    policy: str
    name: str
    holder: str
    task_id: str | None

    @classmethod
    def of(cls, policy: str, conflict: LockConflict) -> Duplicate:
        return cls(policy, conflict.name, conflict.holder, conflict.task_id)

    def written(self) -> list[Any]:
        return [self.policy, self.name, self.holder, self.task_id]

    @property
    def conflict(self) -> LockConflict:
        return LockConflict(self.name, self.holder, self.task_id)


def header(carrier: Any, name: str) -> object:
    """A header of a request, a message or a dict of headers; ``None`` for one of ours that is another message's."""
    value = _raw(carrier, name)
    if value is None or name not in OUR_HEADERS:
        return value
    if not are_for(carrier, _raw(carrier, "id")) or (name in OF_ONE_RUN and not _is_of_this_run(carrier)):
        return None
    return value


def _is_of_this_run(carrier: Any) -> bool:
    """Whether this run was rescheduled: a retry carries the headers of the run before it."""
    written = _raw(carrier, RETRIES_HEADER)
    return written is None or written == _count(_raw(carrier, "retries"))


def are_for(carrier: Any, task_id: object) -> bool:
    """Whether our headers, if there are any, are for the message with this id. Older versions don't say."""
    match _raw(carrier, CALL_HEADER):
        case [str(owner), str()]:
            return task_id is None or owner == str(task_id)
    return True


def without_ours(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in OUR_HEADERS}


def _raw(carrier: Any, name: str) -> object:
    # Nearly all are one of the first two, and it takes long to find out that something is no Mapping.
    if isinstance(carrier, dict) or (not isinstance(carrier, Context) and isinstance(carrier, Mapping)):
        return carrier.get(name)
    headers = getattr(carrier, "headers", None)
    if headers is not None and isinstance(headers, dict | Mapping) and name in headers:
        return headers[name]
    return getattr(carrier, name, None)


def call_in(carrier: Any) -> str | None:
    """What tells this call from another one under the same task id."""
    match _raw(carrier, CALL_HEADER):
        case [str(), str(call)] if len(call) <= 64 and are_for(carrier, _raw(carrier, "id")):
            return call
    return None


def claims_in(carrier: Any) -> tuple[Claim, ...]:
    written = header(carrier, CLAIMS_HEADER)
    if not isinstance(written, list | tuple) or len(written) > MOST_CLAIMS:
        return ()
    claims = [_claim(each) for each in written]
    return tuple(claim for claim in claims if claim is not None) if all(claims) else ()


def position_in(carrier: Any) -> Claim | None:
    return _claim(header(carrier, POSITION_HEADER))


def duplicate_in(carrier: Any, name: str) -> Duplicate | None:
    match header(carrier, name):
        case [str(policy), str(lock), str(holder), (str() | None) as task_id] if _fits(policy, lock, holder, task_id):
            return Duplicate(policy, lock, holder, task_id)
    return None


def text_in(carrier: Any, name: str) -> str | None:
    value = header(carrier, name)
    return value if isinstance(value, str) and value and _fits(value) else None


def count_in(carrier: Any, name: str) -> int:
    return _count(header(carrier, name))


def number_in(carrier: Any, name: str) -> float | None:
    return _number(header(carrier, name))


def waited_in(carrier: Any) -> tuple[float, float] | None:
    """How long the message had waited when it was published, and with what delay, in seconds."""
    match header(carrier, WAITED_HEADER):
        case [before, delay]:
            numbers = _number(before), _number(delay)
            if numbers[0] is not None and numbers[1] is not None and min(numbers[0], numbers[1]) >= 0:
                return numbers[0], numbers[1]
    return None


def arguments_shown_in(carrier: Any) -> IsShown | None:
    """Whether a value may be seen, by the texts that Celery's log shows of the call's arguments.

    A caller hides one by an ``argsrepr`` or ``kwargsrepr`` of its own. What these texts cut isn't shown either.
    ``None``: nobody chose that.
    """
    texts = [text for name in ("argsrepr", "kwargsrepr") if isinstance(text := header(carrier, name), str)]
    if not texts:
        return None
    seen = " ".join(texts)
    return lambda text, value: text.strip("'\"") in seen or repr(value) in seen


def written_claim(claim: Claim) -> list[Any]:
    return [claim.name, claim.token, claim.revision]


def _claim(written: object) -> Claim | None:
    match written:
        case [str(name), str(token), int(revision)] if name and _fits(name, token) and type(revision) is int:
            return Claim(name, token, revision) if 0 <= revision <= GREATEST_REVISION else None
    return None


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= GREATEST_COUNT else 0


def _number(value: object) -> float | None:
    # The comparison refuses NaN too, and an int that no float can hold.
    return float(value) if type(value) in (int, float) and abs(value) < GREATEST_NUMBER else None  # type: ignore[arg-type]


def _fits(*texts: str | None) -> bool:
    return all(text is None or len(text) <= LONGEST_TEXT for text in texts)
