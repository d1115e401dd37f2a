"""The checker of messages finds what it is for, and the plan of a seed is always the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.messages.checker import check
from tests.chaos.messages.history import CallRecord, HistoryRecord
from tests.chaos.messages.lossy import Rule
from tests.chaos.messages.plan import Call, History, Kind, kinds, make_round


def published(at: float, *, claimed: bool = True, retries: int = 0) -> dict[str, Any]:
    return {"event": "published", "at": at, "claimed": claimed, "retries": retries, "replaced": 0, "comebacks": 0}


def body(
    task_id: str, entered: float, left: float, *, retries: int = 0, completed: bool = True
) -> list[dict[str, Any]]:
    who = {"id": task_id, "run": f"{task_id}{entered}", "retries": retries, "replaced": 0}
    return [
        {"event": "start", "at": entered, "id": task_id, "retries": retries},
        {"event": "enter", "at": entered, **who},
        {"event": "exit", "at": left, "completed": completed, **who},
    ]


def call(label: str, at: float, *events: dict[str, Any], state: str = "SUCCESS", **fields: Any) -> CallRecord:
    plan = {name: fields.pop(name) for name in ("revoked", "expires", "strike", "doomed") if name in fields}
    result = {"id": label, "name": "n", "label": label} if state == "SUCCESS" else fields.pop("result", "")
    all_events = sorted([published(at, claimed=fields.pop("claimed", True)), *events], key=lambda event: event["at"])
    record = CallRecord(Call(label, at, 0, 1.0, **plan), at, at + 0.1, label, state=state, events=all_events, **fields)
    record.result = fields.get("result", result)
    return record


def found(*calls: CallRecord, lifetime: str = "until_executed", policy: str = "retry", **fields: Any) -> list[str]:
    limit = fields.pop("limit", 1)
    history = History("n", Kind(lifetime, policy, limit=limit), [each.call for each in calls])
    return [finding.what for finding in check(HistoryRecord(history, list(calls), **fields))]


FIRST = body("a", 1.0, 2.0)


def test_one_after_the_other_is_right() -> None:
    assert found(call("a", 0.0, *FIRST), call("b", 0.5, *body("b", 2.1, 3.0), claimed=False)) == []


@pytest.mark.parametrize("state", ["PENDING", "RETRY", "STARTED"])
def test_a_message_that_does_not_end(state: str) -> None:
    assert "ends" in found(call("a", 0.0, *FIRST, state=state))


def test_an_end_without_a_reason() -> None:
    assert found(call("a", 0.0)) == ["ends", "ends"]  # success, and nobody ran
    assert found(call("a", 0.0, *FIRST, state="FAILURE", result="LockConflict: ...")) == ["ends"]
    assert found(call("a", 0.0, *FIRST, state="REVOKED", result="TaskRevokedError: expired")) == ["ends"]
    expired = call("a", 0.0, state="REVOKED", result="TaskRevokedError: expired", expires=1.0)
    assert found(expired) == []


def test_a_message_that_held_its_lock_is_not_skipped() -> None:
    skipped = call("b", 0.5, state="REVOKED", result="TaskRevokedError: not run: held", claimed=True)
    assert "ends" in found(call("a", 0.0, *FIRST), skipped, policy="skip")
    skipped = call("b", 0.5, state="REVOKED", result="TaskRevokedError: not run: held", claimed=False)
    assert found(call("a", 0.0, *FIRST), skipped, policy="skip") == []


def test_a_run_that_comes_to_its_end_twice_and_one_beside_itself() -> None:
    assert found(call("a", 0.0, *FIRST, *body("a", 3.0, 4.0))) == ["once"]
    assert found(call("a", 0.0, *FIRST, *body("a", 3.0, 4.0, retries=1))) == []
    assert found(call("a", 0.0, *FIRST, *body("a", 1.5, 3.0, retries=1)), lifetime="until_executing") == ["once"]


def test_more_bodies_than_may_hold_the_lock() -> None:
    calls = call("a", 0.0, *FIRST, claimed=False), call("b", 0.5, *body("b", 1.5, 3.0), claimed=False)
    assert found(*calls, lifetime="while_executing") == ["limit"]
    assert found(*calls, lifetime="while_executing", limit=2) == []


def test_a_lock_that_stood_for_a_message() -> None:
    assert set(found(call("a", 0.0, *FIRST), call("b", 0.5, *body("b", 2.1, 3.0)))) == {"lifetime"}
    early = body("b", 0.6, 0.7)
    assert found(call("a", 0.0, *FIRST), call("b", 0.5, *early, claimed=False)) == ["lifetime"]
    assert found(call("a", 0.0, *FIRST), call("b", 0.5, *early, claimed=False), troubles=[0.7]) == []
    window = call("a", 0.0, *FIRST), call("b", 2.5, *body("b", 3.0, 3.5))
    assert found(*window, lifetime="until_expired") == ["lifetime"]


def told(label: str, at: float, whom: str) -> CallRecord:
    return CallRecord(Call(label, at, 0, 1.0), at, at + 0.1, None, told=whom)


def test_who_is_told_of_whom() -> None:
    first = call("a", 0.0, *FIRST)
    assert found(first, told("b", 0.5, "a"), policy="skip") == []
    assert found(first, told("b", 0.5, "x"), policy="skip") == ["told"]
    assert found(first, told("b", 60.0, "a"), policy="skip") == ["told"]
    other = call("b", 2.5, *body("b", 3.0, 3.5), result={"id": "a", "name": "n"})
    assert found(first, other) == ["told"]
    assert found(first, other, policy="join") == []


def test_what_is_left() -> None:
    assert found(call("a", 0.0, *FIRST), left=["key"], probe="PENDING") == ["left", "left"]


def test_a_seed_makes_the_same_round_and_seeds_make_all_kinds() -> None:
    assert make_round(5, 8, clocks_differ=False) == make_round(5, 8, clocks_differ=False)
    made = {each.kind for seed in range(600) for each in make_round(seed, 8, clocks_differ=False).histories}
    assert made <= set(kinds())
    assert {(kind.lifetime, kind.policy, kind.acks_late) for kind in made} == {
        (kind.lifetime, kind.policy, kind.acks_late) for kind in kinds()
    }


def test_a_rule_knows_its_request() -> None:
    position = Rule("s1h1z", "position", 1.0, lambda: None)
    assert position.matches(b'/v1/s1h1z/token ... {"kind":"position"}')
    assert not position.matches(b'/v1/s1h1z/token ... {"kind":"held"}')
    assert not position.matches(b'/v1/s1h11z/token ... {"kind":"position"}')
