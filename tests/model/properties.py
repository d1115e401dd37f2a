"""What must hold in every state, and in those where nothing is left to do."""

from __future__ import annotations

from celery_etcdlock.core.expiry import LONGEST_SKEW_SECONDS
from celery_etcdlock.core.operations import AwaitChange
from celery_etcdlock.core.record import decode_record
from tests.model.clients import session_stands, trust_ends, trusts
from tests.model.model_etcd import EtcdState, Kv
from tests.model.world import NAME, PREFIX, Client, Scenario, Violation, World

__all__ = ["check_rest", "check_state", "places", "token_of"]

#: Seconds between a holder's look at its clock and the effect of what it does then. The margin is there for that.
REACTION_SECONDS = 0.1

#: Seconds after which a waiter asks again about a key whose time is over.
LATE_SECONDS = 2.0

_PLACES = f"{PREFIX}v1/{NAME}/".encode()


def places(world: World) -> list[Kv]:
    """The keys under the name, in order of creation."""
    return sorted((kv for kv in world.etcd.kvs if kv.key.startswith(_PLACES)), key=lambda kv: kv.create)


def token_of(kv: Kv) -> str:
    return kv.key[len(_PLACES) :].decode()


def _owners(world: World, scenario: Scenario) -> list[Kv]:
    """The keys that own the lock: fewer precede than the smallest limit of anyone up to there."""
    owners: list[Kv] = []
    limit = scenario.limit
    for rank, kv in enumerate(places(world)):
        limit = min(limit, scenario.plans["abc".index(token_of(kv)[0])].limit or limit)
        if rank < limit:
            owners.append(kv)
    return owners


def check_state(world: World, scenario: Scenario) -> None:
    _check_beliefs(world, scenario)
    _check_windows(world, scenario)
    _check_ghosts(world, scenario)


def _check_beliefs(world: World, scenario: Scenario) -> None:
    believers = 0
    owners = {(token_of(kv), kv.mod) for kv in _owners(world, scenario)}
    for client, plan in zip(world.clients, scenario.plans, strict=True):
        if client.held is None or client.excused or client.session is None or client.session.lost:
            continue
        if trusts(world, client, plan):
            believers += 1
        belief_ends = trust_ends(client) / plan.rate
        recent = client.alive and belief_ends > world.etcd.now - REACTION_SECONDS
        if recent and (client.held.token, client.held.fencing_token) not in owners:
            raise Violation(
                "P2", f"{client.held.token} believes until {belief_ends:.2f}, but the server has given its lock away"
            )
    if believers > scenario.limit:
        raise Violation("P1", f"{believers} clients believe to own a lock with a limit of {scenario.limit}")


def _check_windows(world: World, scenario: Scenario) -> None:
    """A window that was given out, and is there, is one of the first."""
    owners = {(token_of(kv), kv.mod) for kv in _owners(world, scenario)}
    there = {(token_of(kv), kv.mod) for kv in places(world)}
    for client in world.clients:
        window = client.window
        if window is None or (window.token, window.revision) not in there:
            continue
        if (window.token, window.revision) not in owners:
            raise Violation("P1", f"{window.token} was given out beside the holder")


def _check_ghosts(world: World, scenario: Scenario) -> None:
    for client, plan in zip(world.clients, scenario.plans, strict=True):
        if not client.alive or client.session is None or not session_stands(world, client, plan):
            continue
        known = {client.token, *(debt.token for debt in client.pending_deletes)}
        for kv in places(world):
            if kv.lease == client.session.lease and token_of(kv) not in known:
                raise Violation("rule 3", f"ghost: nobody knows the key of {token_of(kv)}, and its lease is renewed")


def check_deletions(world: World, after: EtcdState, index: int, scenario: Scenario) -> None:
    """Nobody but its writer deletes a key that stands without renewal before its time is over."""
    for kv in set(world.etcd.kvs) - set(after.kvs):
        record = decode_record(kv.value)
        if record is None or record.until is None or record.pid == index:
            continue
        until = record.until - (scenario.plans[record.pid].wall or 0.0)
        if world.etcd.now < until:
            raise Violation("rule 11", f"{token_of(kv)} stands until {until:g}, and was deleted at {world.etcd.now:g}")


def _check_wait(world: World, scenario: Scenario, client: Client) -> None:
    """Nobody waits for keys whose time is over by its own clock and the store's, nor long after it by its own."""
    index = world.clients.index(client)
    wall = scenario.plans[index].wall
    before = [kv for kv in places(world) if kv.create < next(k.create for k in places(world) if _is(k, client))]
    leases = {lease.ident: lease for lease in world.etcd.leases}
    standing = 0
    for kv in before:
        record = decode_record(kv.value)
        over = False
        if wall is not None and record is not None and record.until is not None and record.by_lease is not None:
            lease = leases[kv.lease]
            aged = world.etcd.now - (lease.ends_at - lease.ttl) >= record.by_lease.age_seconds + 1
            late = world.etcd.now + wall - record.until
            over = (aged and late >= 1) or (world.etcd.term > record.by_lease.term and late >= LONGEST_SKEW_SECONDS)
        standing += not over
    assert client.main is not None
    if standing < scenario.limit and client.main.answer_by > world.etcd.now + LATE_SECONDS:
        raise Violation("progress", f"{client.token} waits for keys whose time is over until {client.main.answer_by}")


def _is(kv: Kv, client: Client) -> bool:
    return token_of(kv) == client.token


def check_rest(world: World, scenario: Scenario) -> None:
    """Nothing moves on by itself here: nobody may be stuck."""
    keys = places(world)
    first = {token_of(kv) for kv in _owners(world, scenario)}
    leases = {client.session.lease for client in world.clients if client.session is not None and client.alive}
    for client in world.clients:
        if not client.alive:
            continue
        if client.main is not None:
            if not isinstance(client.main.operation, AwaitChange):
                raise Violation("progress", f"{client.token} waits for {client.main.operation}")
            if client.token in first:
                raise Violation("rule 2", f"{client.token} is next in line and nobody wakes it")
            _check_wait(world, scenario, client)
        elif client.pending_deletes:
            raise Violation("progress", f"nobody pays {client.pending_deletes}")
    for kv in keys:
        owner = next((client for client in world.clients if client.alive and client.token == token_of(kv)), None)
        if owner is None and kv.lease in leases:
            raise Violation("free lock taken", f"{token_of(kv)} is done, and its key still stands in the way")
