"""What must hold: after every step, and once all is quiet.

Where docs make an exception (a worker that died, a network that was cut), so does a property, and no wider.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import states

from celery_etcdlock.core.name_escaping import unescape_name
from celery_etcdlock.core.record import KeyKind, decode_record
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.locking.session import Session
from tests.key_transitions import TRANSITIONS
from tests.model.model_etcd import EtcdState
from tests.simulation.ledger import Call, Run, Sent
from tests.simulation.scheduler import EPOCH

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["Properties", "Violation"]

#: Rules that aren't looked at: to see behind a fault that is known.
IGNORED: set[str] = set()
#: How long after the last trouble things must be in order again, besides two TTLs.
SETTLE_SECONDS = 15.0
#: And until a mark that is owed must have been put, besides a quarter of the TTL (docs/reliability.md).
MARK_SECONDS = 3.0
#: By how much a key's end is late, at most (docs/semantics.md).
LATE_SECONDS = 3.0
#: A run that ended so leaves its lock to the next of its message.
GOES_ON = ("runs", "retry", "replace")
ENDS = ("ok", "fail", "retry", "replace")
#: What a result may be an error of.
ERRORS = frozenset(
    {
        "ValueError",
        "LockConflict",
        "LockUnavailable",
        "LockLost",
        "TaskRevokedError",
        "SoftTimeLimitExceeded",
        "TimeLimitExceeded",
        "WorkerLostError",
        "Terminated",
        # With the broker away: Celery's, of a retry, and of a replacement.
        "Reject",
        "OperationalError",
        # Celery's own RETRY, of what it cancels with its connection.
        "Retry",
    }
)


LOCKS = b"/celery-etcdlock/sim/v1/"


class Violation(Exception):
    """``rule`` says which property."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Properties:
    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = world.ledger
        self.tokens: dict[str, int] = {}
        #: By lock name: token of a claim -> (task id, until).
        self.entitled: dict[str, dict[str, tuple[str, float]]] = {}
        #: By token: the revision of the last call that a message was published for.
        self.claimed_at: dict[str, int] = {}

    @property
    def now(self) -> float:
        return self.world.scheduler.now

    @property
    def skew(self) -> float:
        """By how much wall clocks differ. A key may stand as much longer as a clock is behind, and no shorter."""
        return max(self.world.plan.config.offsets) - min(self.world.plan.config.offsets)

    def fail(self, rule: str, text: str) -> None:
        if rule in IGNORED:
            return
        self.ledger.note(f"VIOLATION of {rule}: {text}")
        if self.world.violation is None:
            self.world.violation = Violation(rule, text)

    # --- P1 to P3 -------------------------------------------------------------------------------------------------

    def believes(self, lock: Lock) -> bool:
        """Whether its holder would say that it holds it, without asking (which may change something)."""
        process = self.world.scheduler.processes.get(lock.pid)
        session: Session = lock.session
        return (
            process is not None
            and process.alive
            and lock in session.held()
            and lock._lost_reason is None
            and session._lost_reason is None
            and self.now < session.deadline
        )

    def held(self, lock: Lock) -> None:
        name = lock.name
        locks = [each for each in self.ledger.locks.get(name, []) if self.believes(each)]
        self.ledger.locks[name] = [*locks, lock]
        self.ledger.note(
            f"{self.world.scheduler.processes[lock.pid].name} holds {name} fence {lock.fencing_token} "
            f"for {lock.record.delivery.task_id[:8]}"
        )
        believers = [each for each in self.ledger.locks[name] if self.believes(each)]
        limit = self.world.limit_of(name)
        if len(believers) > limit:
            who = ", ".join(f"{each.record.delivery.task_id[:8]} (fence {each.fencing_token})" for each in believers)
            self.fail("P1", f"{len(believers)} believe that they own {name!r}: {who}")
        ids = [each.record.delivery.task_id for each in believers]
        if len(set(ids)) < len(ids):
            self.fail("one id at once", f"{name!r} is held twice for one task id: {ids}")
        before = self.tokens.get(name, 0)
        if limit == 1 and lock.fencing_token <= before:
            self.fail("P3", f"fencing token {lock.fencing_token} of {name!r} after {before}")
        self.tokens[name] = max(before, lock.fencing_token)

    # --- keys -----------------------------------------------------------------------------------------------------

    def changed(self, before: EtcdState, after: EtcdState) -> None:
        """What a key is may change only as the table says (``core.key_kinds``)."""
        changed = {event.key for event in after.events if event.revision > before.revision}
        was, is_now = _kinds(before, changed), _kinds(after, changed)
        self._reached(after, {key.rpartition(b"/")[0] for key in changed if key.startswith(LOCKS)})
        for key in sorted(changed):
            if not key.startswith(LOCKS):
                continue
            old, new = was.get(key), is_now.get(key)
            if old is None and new is None:
                continue
            self.world.coverage.hit("key", f"{_shown(old)} -> {_shown(new)}")
            self._rewritten(after, key)
            if new is None:
                self._deleted(before, key)
            # The end of its time, and of its lease, come on top.
            if new is not None and new not in TRANSITIONS[old]:
                self.fail("table of keys", f"{key.decode()} became {_shown(new)} from {_shown(old)}")

    def _reached(self, state: EtcdState, names: set[bytes]) -> None:
        for name in names:
            records = [_record(kv.value) for kv in state.kvs if kv.key.rpartition(b"/")[0] == name]
            known = [record for record in records if record is not None]
            owners = {
                task_id: number for number, task_id in enumerate(dict.fromkeys(r.delivery.task_id for r in known))
            }
            keys = [
                (each.kind.value, owners[each.delivery.task_id], each.delivery.step, each.successor) for each in known
            ]
            lifetimes = {spec.lock for each in known if (spec := self.world.spec_of(each.task)) is not None}
            self.world.coverage.states.add((tuple(sorted(lifetimes)), tuple(keys)))

    def _rewritten(self, state: EtcdState, key: bytes) -> None:
        """A newer call that replaces has the lock from now on, even where it fails and gives it up again."""
        [record] = [decode_record(kv.value) for kv in state.kvs if kv.key == key] or [None]
        *_, name, token = key.decode().split("/")
        entitled = self.entitled.get(unescape_name(name), {})
        if record is not None and token in entitled and record.delivery.task_id != entitled[token][0]:
            del entitled[token]
            self.world.coverage.hit("policy", "rewritten by a newer call")

    def _deleted(self, before: EtcdState, key: bytes) -> None:
        """A job that never enters its body frees what its message held, and stores why after that."""
        current = self.world.scheduler.current
        job = None if current is None else self.world.job_of(current.process)
        record = next((decode_record(kv.value) for kv in before.kvs if kv.key == key), None)
        if job is None or record is None or record.delivery.task_id != job.task_id:
            return
        if job.step < max(step_of(sent.message.headers) for sent in self.ledger.sent[job.task_id]):
            return  # a copy of an earlier run, whose key it isn't
        if not any(run.job is job for run in self.ledger.runs):
            self.ledger.let_go[job.task_id] = self.now, job

    # --- calls ----------------------------------------------------------------------------------------------------

    def called(self, call: Call) -> None:
        """A call returned the result of another one."""
        if not call.conflict or call.result_id is None:
            return
        other = call.result_id
        if self.excused_now(call.began):
            return
        sent = self.ledger.sent.get(other)
        if sent is None:
            if not any(each.ended is None for each in self.ledger.calls if each is not call):
                self.fail("told a ghost", f"call {call.number} was told of {other}, which nobody published")
            return
        if sent[0].message.headers["kwargsrepr"] and call.name not in sent[0].message.body:
            self.fail("told another's", f"call {call.number} for {call.name} was told of {other}, of another lock")
        ended = None if self._goes_on_after_its_result(other) else self.entitlement_ended(call.spec, other)
        if ended is not None:  # its retry may have run after its result
            ended = max([ended, *(run.ended or 0.0 for run in self.ledger.runs if run.task_id == other)])
        if (
            ended is not None
            and ended + call.spec.hold + 1.0 + self.skew < call.began
            and call.spec.lock != "until_expired"
        ):
            self.fail(
                "told an old result",
                f"call {call.number} was told of {other}, whose hold ended {call.began - ended:.1f} s before",
            )

    def _goes_on_after_its_result(self, task_id: str) -> bool:
        """Whether a body called ``retry(throw=False)`` and returned: a result is there, the retry has the lock."""
        latest = max(sent.message.headers.get("retries") or 0 for sent in self.ledger.sent[task_id])
        runs = [run for run in self.ledger.runs if run.task_id == task_id]
        returned = any(run.how == "ok" and run.step[0] < latest for run in runs)
        over = any(run.step[0] == latest and run.ended is not None for run in runs)
        return returned and not over and task_id not in self.ledger.revoked

    def entitlement_ended(self, spec: Any, task_id: str) -> float | None:
        if self.is_revoked_in_its_queue(task_id):
            return None  # Celery stores that at once; the lock is free once a worker finds the message
        ready = self.ledger.ready_at.get(task_id)
        if spec.lock in ("until_executing", "until_and_while_executing"):
            # Its start gives the lock back, a moment before the body is entered.
            began = [run.began for run in self.ledger.runs if run.task_id == task_id]
            if task_id in self.ledger.taken:
                began.append(self.ledger.taken[task_id])
            return min([*began, *([ready] if ready is not None else [])], default=None)
        if any(run.task_id == task_id and self.trusts(run) for run in self.ledger.running):
            return None  # whatever its result says by now: Celery stores one for a copy that expires, too
        # A run that ends otherwise than by a retry or replacement lets go, just before its result is stored.
        ended = [run.ended for run in self.ledger.runs if run.task_id == task_id and run.how not in GOES_ON]
        ended += [run.began for run in self.ledger.running if run.task_id == task_id and not self.trusts(run)]
        if task_id in self.ledger.dropped:
            ended.append(self.ledger.dropped[task_id] + LATE_SECONDS)
        if task_id in self.ledger.let_go:
            ended.append(self.ledger.let_go[task_id][0])
        return min([each for each in (ready, *ended) if each is not None], default=None)

    def is_revoked_in_its_queue(self, task_id: str) -> bool:
        """Whether a message of it waits in its queue, or in a worker for its time."""
        return task_id in self.ledger.revoked and self.world.broker.holds(task_id)

    def excused_now(self, at: float) -> bool:
        """Whether trouble that docs speak of is too recent."""
        settle = 2 * self.world.plan.config.ttl + SETTLE_SECONDS
        last = max([self.ledger.disturbed_until, self.world.etcd.disturbed_at, *(at for at, _ in self.ledger.deaths)])
        return at < last + settle

    # --- claims ---------------------------------------------------------------------------------------------------

    def published(self, sent: Sent) -> None:
        headers = sent.message.headers
        spec = self.world.spec_of(sent.message.headers["task"])
        if "etcdlock_comebacks" in headers:
            if not headers.get("etcdlock_copy"):  # else the first has started, whatever becomes of its copy
                self.ledger.taken.pop(sent.message.task_id, None)
            if "etcdlock_waits_for" not in headers and "etcdlock_joins" not in headers:
                # Its worker got no answer: what it asked for then is made sure not to hold, the claim included.
                self.ledger.forfeited.add(sent.message.task_id)
        if spec is None:
            return
        first = not headers.get("retries") and "etcdlock_comebacks" not in headers
        for name, token, revision in sent.claims:
            if revision < self.claimed_at.get(token, 0):
                # A newer call took its place before it was published, or before its retry was: it won't run, or has.
                self.world.coverage.hit("policy", "replaced before it was published")
                continue
            self.claimed_at[token] = revision
            entitled = self.entitled.setdefault(name, {})
            until = self.now + (spec.unique_for or spec.pending_ttl or 40.0) - 1.5
            if sent.message.expires_at is not None and not spec.unique_for:
                until = min(until, sent.message.expires_at - 1.5)
            if first:
                others = self.still_entitled(spec, name, but=sent.message.task_id, but_token=token)
                if len(others) >= spec.limit:
                    self.fail(
                        "lifetime",
                        f"{sent.message.task_id} got {name!r} though it was taken for {', '.join(sorted(others))}",
                    )
                if token in entitled and entitled[token][0] != sent.message.task_id:
                    self.world.coverage.hit("policy", "replaced at enqueue")
                entitled[token] = (sent.message.task_id, until)

    def still_entitled(self, spec: Any, name: str, but: str, but_token: str = "") -> set[str]:
        found = set()
        for token, (task_id, until) in self.entitled.get(name, {}).items():
            if task_id == but or token == but_token or until < self.now or task_id in self.ledger.excused:
                continue
            if task_id in self.ledger.revoked or task_id in self.ledger.forfeited or self.was_asked_to_release(task_id):
                continue
            ended = None if spec.lock == "until_expired" else self.entitlement_ended(spec, task_id)
            if ended is None:
                found.add(task_id)
        return found

    def was_asked_to_release(self, task_id: str) -> bool:
        """Whether a newer call that replaces asked a run of it: then its lock isn't left to its retry."""
        locks = [run.lock for run in self.ledger.runs if run.task_id == task_id]
        return any(isinstance(lock, Lock) and "asked its holder" in (lock._lost_reason or "") for lock in locks)

    def taken_for(self, name: str) -> set[str]:
        return {task_id for task_id, _ in self.entitled.get(name, {}).values()}

    # --- runs -----------------------------------------------------------------------------------------------------

    def began(self, run: Run) -> None:
        ledger, config = self.ledger, self.world.plan.config
        let_go = ledger.let_go.get(run.task_id)
        if let_go is not None and let_go[1] is run.job:
            # It was another key that it deleted, of an earlier run: this one's still stands. Else somebody has the lock
            # now, which is looked at below.
            del ledger.let_go[run.task_id]
        for earlier in ledger.runs:
            if earlier is run or (earlier.task_id, earlier.step) != (run.task_id, run.step):
                continue
            if (
                earlier.how in ENDS
                and earlier.ended is not None
                and run.task_id not in ledger.unprotected | ledger.forged
            ):
                late = run.spec.while_running or earlier.ended + 0.5 < run.taken_at
                known = self.now - earlier.ended < config.done_ttl
                if late and known and self.owes_mark(earlier):
                    ledger.unmarked.add(run.task_id)  # and so what it publishes is there twice
                if late and known and run.task_id not in ledger.unmarked:
                    self.fail("ran again", f"{run.task_id} step {run.step} ran to its end ({earlier.how}) before")
        if run.spec.lock == "until_executed" and not {run.task_id, *self.taken_for(run.name)} & ledger.unprotected:
            others = self.still_entitled(run.spec, run.name, but=run.task_id)
            if len(others) >= run.spec.limit:
                self.fail(
                    "lifetime", f"{run.task_id} runs though {run.name!r} was taken for {', '.join(sorted(others))}"
                )
        for other in ledger.running:
            if other is not run and other.task_id == run.task_id and self.trusts(other) and self.trusts(run):
                self.fail("one id at once", f"{run.task_id} runs twice at once")

    def owes_mark(self, run: Run) -> bool:
        """Whether etcd was silent until the run's lock had run out, and answers since a moment only."""
        lock, config, etcd = run.lock, self.world.plan.config, self.world.etcd
        if self.world.is_marked(run):
            return False
        silent_until = max(self.ledger.disturbed_until, etcd.disturbed_at)
        if isinstance(lock, Lock):
            ran_out = lock.session.lease in etcd.ran_out
        else:  # its body had none; what kept its copies away is known by its task
            ran_out = any(run.task_id.encode() in value for value in etcd.lost_values)
        return ran_out and self.now < silent_until + config.ttl / 4 + MARK_SECONDS

    def trusts(self, run: Run) -> bool:
        lock = run.lock
        return run.process.alive and isinstance(lock, Lock) and self.believes(lock)

    def stored(self, task_id: str, state: str, result: Any) -> None:
        error = result.get("exc_type") if isinstance(result, dict) else None
        if error is not None and error not in ERRORS:
            self.fail("unexpected error", f"{task_id} is {state}, for {error}: {result.get('exc_message')}")
        before = [each for _, each, _ in self.ledger.stores.get(task_id, [])[:-1]]
        times = [at for at, each, _ in self.ledger.stores.get(task_id, [])[:-1] if each == states.SUCCESS]
        # Celery reads before it writes: what comes between is its own race.
        if before and before[-1] == states.SUCCESS and state != states.SUCCESS and self.now - times[-1] > 0.05:
            self.fail("result overwritten", f"{task_id} was SUCCESS and is {state}")
        if state == states.SUCCESS and isinstance(result, dict) and result.get("ran") != task_id:
            other = str(result.get("ran"))
            sent = self.ledger.sent.get(other)
            spec = self.world.spec_of(sent[0].message.headers["task"]) if sent else None
            if spec is None or "join" not in (spec.enqueue, spec.run):
                self.fail("another's result", f"{task_id} got the result of {other}")

    # --- the end --------------------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        world = self.world
        if world.broker.queue or world.broker.unacked or world.broker.late or self.ledger.running:
            return False
        workers = [worker for worker in world.workers if worker.process.alive and hasattr(worker, "pool")]
        # A child may be on its way to its lock, its message acknowledged and its body not entered.
        working = any(child.job is not None for worker in workers for child in worker.pool.children)
        return not working and not any(
            worker.pool.jobs or worker.pool.dying or worker.waits_for_time() for worker in workers
        )

    def check_messages(self) -> None:
        for task_id, sent in self.ledger.sent.items():
            state = self.ledger.state(task_id)
            if state in states.READY_STATES or task_id in self.ledger.excused:
                continue
            if task_id in self.ledger.dropped or self.overwrote_as_celery_does(task_id):  # no result says so
                continue
            self.fail("lost", f"{task_id} was published {len(sent)} times and is {state}, and no message is left")

    def overwrote_as_celery_does(self, task_id: str) -> bool:
        """Whether RETRY was stored over how the retry ended because that ended at once.

        Celery's ``retry`` publishes first and stores then; what is ours must not make that last longer.
        """
        *before, (at, state, _) = self.ledger.stores.get(task_id) or [(0.0, "", None)]
        last = self.ledger.sent[task_id][-1]
        headers = last.message.headers
        is_ours = "etcdlock_comebacks" in headers and headers.get("etcdlock_retries") == (headers.get("retries") or 0)
        at_once = at - last.at < 0.05 and not is_ours
        return state == states.RETRY and at_once and any(each in states.READY_STATES for _, each, _ in before)

    def check_errors(self) -> None:
        for thread, error in self.world.scheduler.errors:
            if thread.name in ("hub", "main", "reaper", "time limit") or "celery-etcdlock" in thread.name:
                self.fail("a thread ends", f"{thread} ended with {error!r}")

    def left(self, *, prompt: bool) -> list[str]:
        """Keys under locks' names that shouldn't be there any more."""
        left = []
        for kv in self.world.etcd.keys(LOCKS):
            record = decode_record(kv.value)
            name = kv.key.decode().split("/")[-2]
            spec = None if record is None else self.world.spec_of(record.task)
            if prompt and spec is not None and record is not None:
                # One whose time is over is nobody's: whoever meets it deletes it.
                over = record.until is not None and record.until < EPOCH + self.now + self.skew
                if over or spec.lock == "until_expired" or record.delivery.task_id in self.ledger.excused:
                    continue
            left.append(f"{name} {record}")
        return left


def step_of(headers: Any) -> tuple[int, int]:
    return headers.get("retries") or 0, headers.get("replaced_task_nesting") or 0


_record = lru_cache(maxsize=4096)(decode_record)


def _kinds(state: EtcdState, keys: set[bytes]) -> dict[bytes, KeyKind]:
    records = {kv.key: decode_record(kv.value) for kv in state.kvs if kv.key in keys and kv.key.startswith(LOCKS)}
    return {key: record.kind for key, record in records.items() if record is not None}


def _shown(kind: KeyKind | None) -> str:
    return "gone" if kind is None else kind.value


def transitions() -> set[str]:
    """Those of the table, as coverage counts them."""
    return {f"{_shown(old)} -> {_shown(new)}" for old, each in TRANSITIONS.items() for new in each}
