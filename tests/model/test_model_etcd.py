"""The model answers as a real etcd does: random requests run on both, with the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import EtcdStatusError
from tests.etcd_server import EtcdServer, etcd_binary
from tests.model.model_etcd import INITIAL, ModelEtcd, stale_keep_alive, watch

Compare = messages.Compare
RequestOp = messages.RequestOp

REPLIES = {
    "KV/Range": messages.RangeResponse,
    "KV/Put": messages.PutResponse,
    "KV/DeleteRange": messages.DeleteRangeResponse,
    "KV/Txn": messages.TxnResponse,
    "Lease/LeaseGrant": messages.LeaseGrantResponse,
    "Lease/LeaseRevoke": messages.LeaseRevokeResponse,
    "Lease/LeaseKeepAlive": messages.LeaseKeepAliveResponse,
    "Lease/LeaseTimeToLive": messages.LeaseTimeToLiveResponse,
}
LEASES = (1, 2)


@pytest.fixture(scope="module")
def client() -> Iterator[EtcdClient]:
    """Of a server of our own: nobody else may move its revision."""
    try:
        etcd_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with EtcdServer(fsync=False) as server:
        client = EtcdClient(server.endpoint)
        yield client
        client.close()


# --- random requests --------------------------------------------------------------------------------------------------
# Keys begin with "/x/", leases are 1 and 2 and revisions count from the start of the example: ``Both`` makes them real.

KEYS = st.sampled_from([b"/x/a", b"/x/b", b"/x/b/1", b"/x/b/2", b"/x/c"])
RANGES = st.one_of(
    st.tuples(KEYS, st.just(b"")),
    st.sampled_from([(b"/x/b/", b"/x/b0"), (b"/x/", b"/x0"), (b"/x/c", b"/x/b"), (b"/x/none/", b"/x/none0")]),
)
RESULTS = st.sampled_from([Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL])
VALUES = st.sampled_from([b"", b"v", b"w"])


@st.composite
def compares(draw: Any) -> Any:
    key, end = draw(RANGES)
    compare = Compare(key=key, range_end=end, result=draw(RESULTS))
    target = draw(st.sampled_from(["version", "create_revision", "mod_revision", "value", "lease"]))
    numbers = {"version": st.integers(0, 3), "value": VALUES, "lease": st.sampled_from([0, *LEASES])}
    compare.target = {
        "version": Compare.VERSION,
        "create_revision": Compare.CREATE,
        "mod_revision": Compare.MOD,
        "value": Compare.VALUE,
        "lease": Compare.LEASE,
    }[target]
    setattr(compare, target, draw(numbers.get(target, st.integers(-1, 8))))
    return compare


@st.composite
def ranges(draw: Any) -> Any:
    key, end = draw(RANGES)
    keys_only, count_only = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    order = draw(st.sampled_from([0, messages.RangeRequest.ASCEND, messages.RangeRequest.DESCEND]))
    return messages.RangeRequest(
        key=key,
        range_end=end,
        limit=draw(st.sampled_from([0, 0, 1, 2])),
        keys_only=keys_only,
        count_only=count_only,
        sort_order=order,
        sort_target=messages.RangeRequest.CREATE if order else messages.RangeRequest.KEY,
        max_create_revision=draw(st.sampled_from([0, 0, 3, 5])),
    )


@st.composite
def puts(draw: Any) -> Any:
    lease = draw(st.sampled_from([0, 0, *LEASES]))
    return messages.PutRequest(key=draw(KEYS), value=draw(VALUES), lease=lease)


@st.composite
def deletes(draw: Any) -> Any:
    key, end = draw(RANGES)
    return messages.DeleteRangeRequest(key=key, range_end=end)


@st.composite
def txns(draw: Any, depth: int = 2) -> Any:
    operation = st.one_of(
        puts().map(lambda put: RequestOp(request_put=put)),
        ranges().map(lambda wanted: RequestOp(request_range=wanted)),
        deletes().map(lambda delete: RequestOp(request_delete_range=delete)),
        *([txns(depth=depth - 1).map(lambda txn: RequestOp(request_txn=txn))] * 2 if depth else []),
    )
    return messages.TxnRequest(
        compare=draw(st.lists(compares(), max_size=2)),
        success=draw(st.lists(operation, max_size=3)),
        failure=draw(st.lists(operation, max_size=2)),
    )


def lease_calls() -> Any:
    return st.one_of(
        st.builds(
            lambda lease: ("Lease/LeaseGrant", messages.LeaseGrantRequest(ID=lease, TTL=600)), st.sampled_from(LEASES)
        ),
        st.builds(lambda lease: ("Lease/LeaseRevoke", messages.LeaseRevokeRequest(ID=lease)), st.sampled_from(LEASES)),
        st.builds(
            lambda lease: ("Lease/LeaseKeepAlive", messages.LeaseKeepAliveRequest(ID=lease)), st.sampled_from(LEASES)
        ),
        st.builds(
            lambda lease: ("Lease/LeaseTimeToLive", messages.LeaseTimeToLiveRequest(ID=lease, keys=True)),
            st.sampled_from(LEASES),
        ),
    )


CALLS = st.lists(
    st.one_of(
        txns().map(lambda txn: ("KV/Txn", txn)),
        txns().map(lambda txn: ("KV/Txn", txn)),
        puts().map(lambda put: ("KV/Put", put)),
        ranges().map(lambda wanted: ("KV/Range", wanted)),
        deletes().map(lambda delete: ("KV/DeleteRange", delete)),
        lease_calls(),
    ),
    min_size=2,
    max_size=12,
)


class Both:
    """A real etcd and the model, at the same revision and with nothing under the example's own prefix."""

    examples = 0

    def __init__(self, client: EtcdClient) -> None:
        Both.examples += 1
        self.client = client
        self.prefix = f"/{Both.examples}/".encode()
        probe = messages.RangeRequest(key=b"/none").SerializeToString()
        reply = messages.RangeResponse.FromString(client.call("/etcdserverpb.KV/Range", probe, 5))
        self.start = reply.header.revision
        self.model = ModelEtcd(INITIAL._replace(revision=self.start))

    def real(self, message: Any) -> Any:
        """The message with keys, leases and revisions of this example."""
        copy = type(message)()
        copy.CopyFrom(message)
        for field, value in copy.ListFields():
            if field.name in ("success", "failure", "compare"):
                for index, inner in enumerate(value):
                    value[index].CopyFrom(self.real(inner))
            elif field.message_type is not None:
                value.CopyFrom(self.real(value))
            elif field.name in ("key", "range_end"):
                setattr(copy, field.name, value.replace(b"/x", self.prefix[:-1], 1))
            elif field.name in ("create_revision", "mod_revision"):
                setattr(copy, field.name, value if value <= 0 else self.start + value)
            elif field.name in ("lease", "ID") and value:
                setattr(copy, field.name, Both.examples * 100 + value)
        return copy

    def ask(self, path: str, message: Any) -> tuple[Any, Any]:
        request = self.real(message).SerializeToString()
        answers = []
        for transport in (self.client, self.model):
            try:
                reply = REPLIES[path].FromString(transport.call(f"/etcdserverpb.{path}", request, 5))
                answers.append((reply.header.revision, self.bare(reply)))
            except EtcdStatusError as error:
                answers.append((type(error).__name__, error.details))
        return answers[0], answers[1]

    def bare(self, reply: Any) -> Any:
        """Without what says which member answered, and without the headers inside a transaction's answer."""
        for field, value in reply.ListFields():
            if field.name == "header":
                reply.ClearField("header")
            elif field.name == "responses":
                for inner in value:
                    self.bare(inner)
            elif field.name.startswith("response_"):
                self.bare(value)
            elif field.name == "TTL" and isinstance(reply, messages.LeaseTimeToLiveResponse) and value > 0:
                reply.TTL = 1  # it ticks on the real one
        if isinstance(reply, messages.LeaseTimeToLiveResponse):
            kept = sorted(reply.keys)
            del reply.keys[:]
            reply.keys.extend(kept)
        return reply


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=CALLS)
def test_answers_as_a_real_etcd(client: EtcdClient, calls: list[tuple[str, Any]]) -> None:
    both = Both(client)
    for lease in LEASES:
        both.ask("Lease/LeaseGrant", messages.LeaseGrantRequest(ID=lease, TTL=600))
    for path, message in calls:
        real, model = both.ask(path, message)
        assert real == model, f"{path} {message}"
    everything = messages.RangeRequest(key=b"/x/", range_end=b"/x0")
    real, model = both.ask("KV/Range", everything)
    assert real == model


def test_a_range_compare_over_nothing_sees_a_key_of_zeros(client: EtcdClient) -> None:
    both = Both(client)
    for result, revision, holds in [
        (Compare.EQUAL, 0, True),
        (Compare.LESS, 1, True),
        (Compare.GREATER, 0, False),
        (Compare.NOT_EQUAL, 0, False),
    ]:
        compare = Compare(key=b"/x/", range_end=b"/x0", target=Compare.CREATE, result=result, create_revision=revision)
        (_, real), (_, model) = both.ask("KV/Txn", messages.TxnRequest(compare=[compare]))
        assert real.succeeded == model.succeeded == holds


# --- time, which the explorer moves ---------------------------------------------------------------------------------


def grant(model: ModelEtcd, lease: int, ttl_seconds: int) -> None:
    model.call("Lease/LeaseGrant", messages.LeaseGrantRequest(ID=lease, TTL=ttl_seconds).SerializeToString(), 1)


def keep_alive(model: ModelEtcd, lease: int) -> Any:
    request = messages.LeaseKeepAliveRequest(ID=lease).SerializeToString()
    return messages.LeaseKeepAliveResponse.FromString(model.call("Lease/LeaseKeepAlive", request, 1))


def test_a_lease_runs_out_with_its_keys_in_one_revision() -> None:
    model = ModelEtcd()
    grant(model, 7, 10)
    model.put(b"/a", lease=7)
    model.put(b"/b", lease=7)
    model.put(b"/c")
    before = model.state.revision
    model.advance(9.9)
    assert len(model.keys()) == 3
    model.advance(0.1)
    assert model.keys() == [b"/c"]
    assert model.state.revision == before + 1
    assert keep_alive(model, 7).TTL == 0


def test_a_keepalive_counts_from_its_arrival() -> None:
    model = ModelEtcd()
    grant(model, 7, 10)
    model.advance(6)
    assert keep_alive(model, 7).TTL == 10
    model.advance(9)
    assert model.state.leases


def test_a_key_overwritten_without_its_lease_is_detached() -> None:
    model = ModelEtcd()
    grant(model, 7, 10)
    model.put(b"/a", lease=7)
    model.put(b"/a")
    model.advance(10)
    assert model.keys() == [b"/a"]


def test_a_stale_leader_says_yes_in_its_own_term() -> None:
    model = ModelEtcd()
    grant(model, 7, 10)
    model.advance(5)
    ends_at = model.state.leases[0].ends_at
    request = messages.LeaseKeepAliveRequest(ID=7).SerializeToString()
    reply = messages.LeaseKeepAliveResponse.FromString(stale_keep_alive(model.state, request))
    assert (reply.TTL, reply.header.raft_term) == (10, model.state.term - 1)
    assert model.state.leases[0].ends_at == ends_at


def test_a_watch_finds_what_came_before_it_began() -> None:
    model = ModelEtcd()
    model.put(b"/a/1")
    model.delete(b"/a/1")

    def watched(start: int, *filters: int) -> list[tuple[int, bytes]]:
        create = messages.WatchCreateRequest(key=b"/a/", range_end=b"/a0", start_revision=start, filters=list(filters))
        reply = watch(model.state, messages.WatchRequest(create_request=create).SerializeToString())
        return (
            []
            if reply is None
            else [(event.type, event.kv.key) for event in messages.WatchResponse.FromString(reply).events]
        )

    assert watched(1) == [(0, b"/a/1"), (1, b"/a/1")]
    assert watched(1, messages.WatchCreateRequest.NOPUT) == [(1, b"/a/1")]
    assert watched(model.state.revision + 1) == []


def test_states_can_be_kept_and_compared() -> None:
    model = ModelEtcd()
    model.put(b"/a")
    kept = model.state
    model.put(b"/b")
    model.state, after = kept, model.state
    model.put(b"/b")
    assert model.state == after
    assert hash(model.state) == hash(after)
    assert kept != after
