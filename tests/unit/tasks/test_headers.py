"""Headers come from outside: forged, huge, of a wrong type, of another task or from a newer version."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_etcdlock.locking.outcomes import Claim
from celery_etcdlock.tasks.entry.caller import delivery_of
from celery_etcdlock.tasks.message import headers
from celery_etcdlock.tasks.message.headers import (
    CALL_HEADER,
    CLAIMS_HEADER,
    DUPLICATE_HEADER,
    JOIN_HEADER,
    OUR_HEADERS,
    POSITION_HEADER,
    RESCHEDULES_HEADER,
    WAITED_HEADER,
    WAITING_SINCE_HEADER,
    WAITS_FOR_HEADER,
)
from celery_etcdlock.tasks.producer.publish import with_call
from tests.unit.tasks.any_headers import HEADERS, VALUES
from tests.unit.tasks.worker_in_memory import Worker

READERS: list[Callable[[Any], object]] = [
    headers.call_in,
    headers.claims_in,
    headers.position_in,
    headers.waited_in,
    delivery_of,
    lambda carrier: headers.duplicate_in(carrier, DUPLICATE_HEADER),
    lambda carrier: headers.duplicate_in(carrier, JOIN_HEADER),
    lambda carrier: headers.text_in(carrier, WAITS_FOR_HEADER),
    lambda carrier: headers.number_in(carrier, WAITING_SINCE_HEADER),
    lambda carrier: headers.count_in(carrier, RESCHEDULES_HEADER),
]


def carriers(of: dict[str, Any]) -> list[Any]:
    return [of, SimpleNamespace(headers=of), SimpleNamespace(headers=None, **of)]


@given(HEADERS)
@example({WAITING_SINCE_HEADER: 10**400})
@example({WAITED_HEADER: [float("nan"), float("inf")]})
@example({CLAIMS_HEADER: [["n", "t", True]]})
def test_no_reader_raises_and_what_it_reads_has_its_type(of: dict[str, Any]) -> None:
    for carrier in carriers(of):
        for read in READERS:
            read(carrier)
        for claim in (*headers.claims_in(carrier), headers.position_in(carrier)):
            assert claim is None or (type(claim.revision) is int and 0 <= claim.revision < 2**63 and claim.name)
        since = headers.number_in(carrier, WAITING_SINCE_HEADER)
        assert since is None or abs(since) < 1e13
        delivery = delivery_of(carrier)
        assert delivery.retries >= 0 <= delivery.replacements


def test_what_is_right_is_read() -> None:
    right = {"id": "a", CALL_HEADER: ["a", "1234"], CLAIMS_HEADER: [["n", "t", 5]], WAITED_HEADER: [1, 0.5]}
    for carrier in carriers(right):
        assert headers.call_in(carrier) == "1234"
        assert headers.claims_in(carrier) == (Claim("n", "t", 5),)
        assert headers.waited_in(carrier) == (1.0, 0.5)


@given(st.sampled_from([name for name in OUR_HEADERS if name != CALL_HEADER]), VALUES)
def test_headers_of_another_tasks_message_dont_count(name: str, value: object) -> None:
    for carrier in carriers({"id": "child", CALL_HEADER: ["parent", "1234"], name: value}):
        assert headers.header(carrier, name) is None
    assert with_call({CALL_HEADER: ["parent", "1234"], name: value, "mine": 1}, "child").keys() == {CALL_HEADER, "mine"}


def test_a_call_with_the_headers_of_the_task_that_runs_takes_its_own_lock(worker: Worker) -> None:
    """``apply_async(headers=self.request.headers)``, as people do to pass on a trace id."""
    task = worker.task(lock="until_executed", unique_on=["n"], arguments=["n"])
    task.delay(1)
    [parent] = worker.messages()
    of_parent = {name: value for name, value in parent.headers.items() if name.startswith("etcdlock_")}
    task.apply_async((2,), headers=of_parent | {"trace": "x"})
    [child] = worker.messages()
    assert child.headers["trace"] == "x"
    assert child.headers[CALL_HEADER][0] == child.headers["id"]
    names = [Claim(*message.headers[CLAIMS_HEADER][0]).name for message in (parent, child)]
    assert names[0] != names[1]
    worker.run(child)
    assert [worker.holders(name) for name in names] == [1, 0]
    worker.run(parent)
    assert len(worker.ran) == 2


@pytest.mark.parametrize("lifetime", ["until_executed", "until_executing", "until_and_while_executing"])
def test_headers_that_lie_release_and_take_nobodys_lock(worker: Worker, lifetime: str) -> None:
    """A claim that names another's key, as it is in etcd: of a message, a holder, one that waits."""
    task = worker.task(lock=lifetime, unique_on=["n"], arguments=["n"], on_conflict={"enqueue": "skip"})
    task.delay(1)
    [other] = worker.messages()
    theirs = Claim(*other.headers[CLAIMS_HEADER][0])
    task.delay(2)
    [mine] = worker.messages()
    del mine.headers[CALL_HEADER]
    for header, value in ((CLAIMS_HEADER, [[*_parts(theirs)]]), (POSITION_HEADER, _parts(theirs))):
        mine.headers[header] = value
    worker.run(mine)
    assert len(worker.ran) == 1
    keys = worker.locks.holders(theirs.name)
    assert [(key.token, key.mod_revision) for key in keys] == [(theirs.token, theirs.revision)]
    with worker.locks.lock("held") as held:
        task.delay(3)
        [liar] = worker.messages()
        del liar.headers[CALL_HEADER]
        [key] = worker.locks.holders("held")
        liar.headers[CLAIMS_HEADER] = [["held", key.token, held.fencing_token]]
        worker.run(liar)
        held.check()
        assert worker.holders("held") == 1


def _parts(claim: Claim) -> list[Any]:
    return [claim.name, claim.token, claim.revision]
