"""Asking before trying changes what a refused try costs, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.core.operations import FenceSession, GrantLease, Release, RevokeLease, TryAcquire
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import Owned, Present, SessionFenced
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import ConnectionLost
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.etcd.recent_conflicts import MOST_NAMES, RecentConflicts
from tests.model.codec import NeverLately
from tests.model.model_etcd import ModelEtcd

RECORD = Record(Delivery("task"), "proj.work", "host", 1, 1.0, 1, "broker")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("try"), st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from([0, 1, 1000])),
        st.tuples(st.just("release"), st.sampled_from("ab"), st.sampled_from("xyz"), st.just(0)),
        st.tuples(st.sampled_from(["fence", "revoke"]), st.just(""), st.just(""), st.just(0)),
    ),
    max_size=25,
)


class Counting(ModelEtcd):
    """Counts the transactions that would be written to etcd's log."""

    written = 0

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        if path.endswith("/Txn"):
            operations = messages.TxnRequest.FromString(request)
            branches = [*operations.success, *operations.failure]
            self.written += any(not operation.HasField("request_range") for operation in branches)
        return super().call(path, request, timeout_seconds, repeatable=repeatable)


class Client:
    def __init__(self, *, asks_first: bool) -> None:
        self.etcd = Counting()
        self.store = EtcdStore(self.etcd, "/p/")
        if not asks_first:
            self.store._recent_conflicts = NeverLately()
        self.perform(GrantLease(7, 60))
        self.epoch = 0
        self.fence()

    def perform(self, operation: Any) -> Any:
        return self.store.perform(operation, 5)

    def fence(self) -> Any:
        reply = self.perform(FenceSession(7))
        if isinstance(reply, SessionFenced):
            self.epoch = self.epoch or reply.epoch  # the first one: later tries are fenced off
        return reply

    def attempt(self, name: str, token: str, seen: int = 0) -> Any:
        return self.perform(TryAcquire(7, self.epoch, name, token, RECORD, seen))

    def step(self, kind: str, name: str, token: str, seen: int) -> Any:
        if kind == "try":
            return self.attempt(name, token, seen)
        if kind == "release":
            return self.perform(Release(name, token, seen))
        return self.fence() if kind == "fence" else self.perform(RevokeLease(7))


@given(STEPS)
def test_the_answers_are_those_of_a_store_that_only_tries(steps: list[tuple[str, str, str, int]]) -> None:
    asking, trying = Client(asks_first=True), Client(asks_first=False)
    held: dict[tuple[str, str], int] = {}
    for kind, name, token, seen in steps:
        revision = held.get((name, token), 0) if kind == "release" else seen
        one, other = asking.step(kind, name, token, revision), trying.step(kind, name, token, revision)
        assert one == other
        if isinstance(one, Owned):
            held[name, token] = one.revision
    assert asking.etcd.keys() == trying.etcd.keys()


def test_a_flood_of_duplicates_is_written_once() -> None:
    client = Client(asks_first=True)
    assert isinstance(client.attempt("a", "x"), Owned)
    assert client.etcd.written == 1
    for _ in range(10):
        assert isinstance(client.attempt("a", "y"), Present)
    assert client.etcd.written == 2
    assert isinstance(client.attempt("b", "y"), Owned), "another name is tried at once"
    assert client.etcd.written == 3


def test_a_question_that_gets_no_answer_has_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(asks_first=True)
    client.attempt("a", "x")
    client.attempt("a", "y")

    def lose(*_: object, **__: object) -> bytes:
        raise ConnectionLost("lost", maybe_applied=True)

    monkeypatch.setattr(client.etcd, "call", lose)
    with pytest.raises(ConnectionLost) as caught:
        client.attempt("a", "z")
    assert not caught.value.maybe_applied


def test_names_that_were_refused_are_bounded() -> None:
    recent_conflicts = RecentConflicts()
    for number in range(3 * MOST_NAMES):
        recent_conflicts.note(str(number), refused=True)
        assert recent_conflicts.lately(str(number))
        assert len(recent_conflicts._until) <= MOST_NAMES
