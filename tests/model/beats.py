"""Every interleaving of schedulers that take over from one another: which ticks are sent, how often, under which ids.

Production's own code is explored: the machine that saves a state (``core.protocol.save_states``), its transactions
(``etcd.state_transactions``), and the states (``core.beat_state``), on the model of etcd. A scheduler here does what a
term does (``beat.leader_term``, ``beat.scheduler_guard``) for one entry whose ticks are numbered, one step at a time:

    load -> (send what the last one left) -> claim -> ask the lock -> send -> confirm -> claim ...

Between any two steps a request may be late, its answer lost, the scheduler may die or be paused for so long that its
lock goes to another, right behind its look at the lock too; and whatever it has sent arrives later, or never.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from celery_etcdlock.core.beat_state import EntryState, Phase, decode_state, encode_state
from celery_etcdlock.core.operations import (
    FenceSession,
    GrantLease,
    HeldKey,
    LoadStates,
    Operation,
    Pause,
    SaveStates,
    StateWrite,
    TryAcquire,
)
from celery_etcdlock.core.protocol import GuardLost, Overtaken, Save, Saved, Unavailable
from celery_etcdlock.core.record import Delivery, Record
from celery_etcdlock.core.replies import Changed, Failed, Owned, SessionFenced, StatesSeen
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.etcd.state_transactions import States
from tests.model.codec import Codec
from tests.model.model_etcd import INITIAL, EtcdState, answer, expire
from tests.model.world import Frozen

NAME = "beat:model"
BOOK = "beat:model"
ENTRY = "entry"
DEADLINE = 10.0
RECORD = Record(Delivery("beat"), "beat", "host", 1, 0.0)


@dataclass(frozen=True)
class Rules:
    """What a term does; a mutation changes one."""

    at_least_once: bool = True
    ticks: int = 2
    schedulers: int = 2
    #: How many answers may be lost, schedulers die, and locks go while their holder is paused.
    losses: int = 1
    deaths: int = 1
    pauses: int = 1
    states_class: type[States] = States
    save_class: type[Save] = Save
    keeps_doubtful_claims: bool = True
    keeps_ids: bool = True
    sends_what_was_left: bool = True
    asks_the_lock: bool = True


class Scheduler(NamedTuple):
    """``doing``: out, idle, saving, claimed, asked (may send now), dead."""

    doing: str = "out"
    guard: HeldKey | None = None
    lease: int = 0
    trusts: bool = False
    terms: int = 0
    known: tuple[bytes, int] = (b"", 0)
    machine: Frozen | None = None
    operation: SaveStates | None = None
    request: bytes = b""
    value: bytes = b""
    left: bool = False
    claims: int = 0


class World(NamedTuple):
    etcd: EtcdState
    schedulers: tuple[Scheduler, ...]
    #: Requests on their way: of whom, the bytes, and whether somebody still waits for the answer.
    flying: tuple[tuple[int, bytes], ...]
    #: (tick, task id) of all that the broker got.
    sent: tuple[tuple[int, str], ...]
    losses: int
    deaths: int
    pauses: int
    hurt: bool = False

    def having(self, index: int, **changes: Any) -> World:
        mine = self.schedulers[index]._replace(**changes)
        return self._replace(schedulers=(*self.schedulers[:index], mine, *self.schedulers[index + 1 :]))


class Broken(AssertionError):
    def __init__(self, rule: str, world: World) -> None:
        super().__init__(f"{rule}: {world.sent}")
        self.rule = rule


class Exploration:
    """All worlds that ``rules`` allow. ``run`` raises ``Broken`` with the schedule that broke a promise."""

    def __init__(self, rules: Rules, most_states: int = 400_000) -> None:
        self.rules = rules
        self.most_states = most_states
        self.states = 0
        self.at_rest = 0
        self.codec = Codec()
        for store in (self.codec._encoder, self.codec._decoder):
            assert isinstance(store, EtcdStore)
            store._states = rules.states_class(store._layout)

    def run(self) -> list[str]:
        """Explore. Returns the schedule that broke something, empty if none did; ``broken`` says what."""
        rules = self.rules
        first = World(INITIAL, (Scheduler(),) * rules.schedulers, (), (), rules.losses, rules.deaths, rules.pauses)
        seen: dict[World, tuple[World | None, str]] = {first: (None, "")}
        todo = [first]
        while todo:
            world = todo.pop()
            self.states += 1
            assert self.states < self.most_states, "too many states"
            try:
                moves = self.moves(world)
                following = [(label, self.checked(after)) for label, after in moves]
                if not any(self.is_progress(label) for label, _ in moves):
                    self.check_rest(world)
            except Broken as broken:
                self.broken = broken
                return self.schedule(seen, world)
            for label, after in following:
                # Nobody watches here: what was written when doesn't matter.
                after = after._replace(etcd=after.etcd._replace(events=()))
                if after not in seen:
                    seen[after] = (world, label)
                    todo.append(after)
        return []

    @staticmethod
    def is_progress(label: str) -> bool:
        return not label.startswith(("dies", "is paused", "is lost"))

    @staticmethod
    def schedule(seen: dict[World, tuple[World | None, str]], world: World) -> list[str]:
        steps = []
        at: World | None = world
        while at is not None:
            at, label = seen[at]
            steps.append(label)
        return steps[::-1]

    # --- promises ---------------------------------------------------------------------------------------------

    def checked(self, world: World) -> World:
        ids: dict[int, list[str]] = {}
        for tick, ident in world.sent:
            ids.setdefault(tick, []).append(ident)
        for mine in ids.values():
            if len(set(mine)) > 1:
                raise Broken("one id", world)
            if len(mine) > 1 and not (self.rules.at_least_once and world.hurt):
                raise Broken("once", world)
        return world

    def check_rest(self, world: World) -> None:
        """Nothing can happen any more but harm: whoever lives has sent every tick."""
        self.at_rest += 1
        if all(one.doing == "dead" for one in world.schedulers):
            return
        sent = {tick for tick, _ in world.sent}
        missing = [tick for tick in range(1, self.rules.ticks + 1) if tick not in sent]
        if missing and (self.rules.at_least_once or not world.hurt):
            raise Broken("none lost", world)

    # --- moves ------------------------------------------------------------------------------------------------

    def moves(self, world: World) -> list[tuple[str, World]]:
        found = []
        for place, (index, request) in enumerate(world.flying):
            rest = world._replace(flying=world.flying[:place] + world.flying[place + 1 :])
            found.append((f"{index}'s request arrives", self.arrive(rest, index, request)))
        for index, one in enumerate(world.schedulers):
            if one.doing == "dead":
                if one.lease and self.holds(world, one):
                    found.append((f"{index}'s lease ends", self.end_lease(world, index)))
                continue
            found += self.moves_of(world, index, one)
        return found

    def moves_of(self, world: World, index: int, one: Scheduler) -> list[tuple[str, World]]:
        found: list[tuple[str, World]] = []
        if world.deaths and one.doing != "out":
            dead = world.having(index, doing="dead", machine=None, operation=None)
            found.append((f"dies: {index}", dead._replace(deaths=world.deaths - 1, hurt=True)))
        if world.pauses and one.trusts:
            # Its trust ends, and its lease soon after, wherever it is.
            paused = self.end_lease(world.having(index, trusts=False), index)
            found.append((f"is paused: {index}", paused._replace(pauses=world.pauses - 1, hurt=True)))
        if one.doing == "saving" and world.losses:
            lost = world._replace(losses=world.losses - 1)
            for label, now in (("asks again", 0.0), ("gives up", DEADLINE)):
                after = self.hear(lost, index, Failed(LockUnavailable("lost", maybe_applied=True)), now)
                found.append((f"is lost: an answer to {index}, which {label}", after))
        nobody_yet = index > 0 and not any(each.terms for each in world.schedulers)
        if one.doing == "out" and self.is_free(world) and one.terms < 2 and not nobody_yet:
            found.append((f"{index} takes over", self.take_over(world, index)))
        elif one.doing == "idle":
            found += [(f"{index} {label}", after) for label, after in self.work(world, index, one)]
        elif one.doing == "claimed":
            if one.trusts or not self.rules.asks_the_lock:
                found.append((f"{index} asks its lock", world.having(index, doing="asked")))
            else:
                found.append((f"{index} finds its lock lost", self.out(world, index)))
        elif one.doing == "asked":
            found.append((f"{index} sends", self.send(world, index, one)))
        return found

    def work(self, world: World, index: int, one: Scheduler) -> list[tuple[str, World]]:
        if not one.trusts:
            return [("finds its lock lost", self.out(world, index))]
        state = decode_state(one.known[0]) if one.known[0] else None
        assert state is None or isinstance(state, EntryState)
        if one.value and one.operation is not None and self.rules.keeps_doubtful_claims:
            return [("saves the same again", self.save(world, index, one.value))]
        if one.left and state is not None and state.phase is Phase.CLAIMED and self.rules.sends_what_was_left:
            if not self.rules.keeps_ids:
                one = one._replace(claims=one.claims + 1)
                state = replace(state, task_id=f"{index}.{one.terms}.{one.claims}")
            return [
                (
                    "takes up what was left",
                    world.having(index, doing="claimed", value=encode_state(state), left=False, claims=one.claims),
                )
            ]
        found = []
        if state is not None and state.phase is Phase.CLAIMED and not one.left:
            confirmed = replace(state, phase=Phase.PUBLISHED, fence=one.guard.mod_revision if one.guard else 0)
            found.append(("confirms", self.save(world, index, encode_state(confirmed))))
        count = 0 if state is None else state.count
        if count < self.rules.ticks:
            phase = Phase.CLAIMED if self.rules.at_least_once else Phase.PUBLISHED
            ident = f"{index}.{one.terms}.{one.claims}"
            claim = EntryState(ENTRY, "task", "", 0.0, count + 1, phase, task_id=ident)
            begun = world.having(index, claims=one.claims + 1, left=False)
            found.append(("claims", self.save(begun, index, encode_state(claim))))
        return found

    # --- steps ------------------------------------------------------------------------------------------------

    def do(self, etcd: EtcdState, operation: Any) -> tuple[EtcdState, Any]:
        path, request, _ = self.codec.encode(operation)
        etcd, reply = answer(etcd, path, request)
        return etcd, self.codec.decode(operation, request, reply)

    def is_free(self, world: World) -> bool:
        return not any(b"/v1/" in kv.key for kv in world.etcd.kvs)

    def holds(self, world: World, one: Scheduler) -> bool:
        return any(lease.ident == one.lease for lease in world.etcd.leases)

    def take_over(self, world: World, index: int) -> World:
        one = world.schedulers[index]
        lease = 16 * (index + 1) + one.terms
        etcd, _ = self.do(world.etcd, GrantLease(lease, 10))
        etcd, fenced = self.do(etcd, FenceSession(lease))
        assert isinstance(fenced, SessionFenced)
        token = f"{index}.{one.terms}"
        etcd, owned = self.do(etcd, TryAcquire(lease, fenced.epoch, NAME, token, RECORD))
        assert isinstance(owned, Owned)
        etcd, seen = self.do(etcd, LoadStates(BOOK))
        assert isinstance(seen, StatesSeen)
        known = (seen.states[0].value, seen.states[0].revision) if seen.states else (b"", 0)
        guard = HeldKey(NAME, token, owned.revision)
        return world._replace(etcd=etcd).having(
            index,
            doing="idle",
            guard=guard,
            lease=lease,
            trusts=True,
            terms=one.terms + 1,
            known=known,
            left=bool(known[0]),
            operation=None,
            value=b"",
        )

    def out(self, world: World, index: int) -> World:
        return world.having(index, doing="out", guard=None, trusts=False, machine=None, operation=None, value=b"")

    def end_lease(self, world: World, index: int) -> World:
        one = world.schedulers[index]
        return world._replace(etcd=expire(world.etcd, one.lease)) if self.holds(world, one) else world

    def save(self, world: World, index: int, value: bytes) -> World:
        one = world.schedulers[index]
        assert one.guard is not None
        write = StateWrite(ENTRY, value, one.known[1])
        machine = self.rules.save_class(guard=one.guard, name=BOOK, writes=(write,), deadline=DEADLINE)
        world = world.having(index, doing="saving", value=value)
        return self.ask(world, index, machine, machine.start(0.0))

    def ask(self, world: World, index: int, machine: Any, step: Any) -> World:
        while isinstance(step, Pause):
            step = machine.on(Changed(), 0.0)
        if not isinstance(step, Operation):
            return self.saved(world, index, step)
        assert isinstance(step, SaveStates)
        _, request, _ = self.codec.encode(step)
        world = world.having(index, machine=Frozen(machine), operation=step, request=request)
        return world._replace(flying=tuple(sorted((*world.flying, (index, request)))))

    def arrive(self, world: World, index: int, request: bytes) -> World:
        etcd, reply = answer(world.etcd, "/etcdserverpb.KV/Txn", request)
        world = world._replace(etcd=etcd)
        one = world.schedulers[index]
        if one.doing != "saving" or one.request != request or one.operation is None:
            return world  # nobody waits for it any more
        return self.hear(world, index, self.codec.decode(one.operation, request, reply), 0.0)

    def hear(self, world: World, index: int, reply: Any, now: float) -> World:
        one = world.schedulers[index]
        assert one.machine is not None
        machine = one.machine.thaw()
        return self.ask(world.having(index, request=b""), index, machine, machine.on(reply, now))

    def saved(self, world: World, index: int, outcome: Any) -> World:
        one = world.schedulers[index]
        if isinstance(outcome, Unavailable):
            # In doubt: ``operation`` and ``value`` stay, and are saved as they were before anything else.
            return world.having(index, doing="idle", machine=None)
        if isinstance(outcome, Overtaken) and self.holds(world, one):
            raise Broken("overtaken", world)
        if isinstance(outcome, GuardLost | Overtaken):
            return self.end_lease(self.out(world, index), index)
        assert isinstance(outcome, Saved)
        before = decode_state(one.known[0]) if one.known[0] else None
        state = decode_state(one.value)
        assert isinstance(state, EntryState)
        is_claim = not isinstance(before, EntryState) or state.count > before.count
        return world.having(
            index,
            known=(one.value, outcome.revisions[0]),
            machine=None,
            operation=None,
            doing="claimed" if is_claim else "idle",
            value=one.value if is_claim else b"",
        )

    def send(self, world: World, index: int, one: Scheduler) -> World:
        state = decode_state(one.value)
        assert isinstance(state, EntryState)
        sent = tuple(sorted((*world.sent, (state.count, state.task_id or ""))))
        return world._replace(sent=sent).having(index, doing="idle", value=b"", operation=None)
