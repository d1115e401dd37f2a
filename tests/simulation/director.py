"""Does what a plan says, at its time: calls, and faults of all kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.errors import EtcdLockError
from tests.simulation.etcd import Link
from tests.simulation.ledger import Call
from tests.simulation.plan import Action
from tests.simulation.scheduler import Process
from tests.simulation.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["Director"]


class Director:
    """One for a run. An action of the kind ``kill worker`` is the method ``_kill_worker``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: dict[int, Call] = {}

    def start(self) -> None:
        config = self.world.plan.config
        for number in range(config.workers):
            self.world.workers.append(Worker(self.world, f"worker{number}", config.offsets[number]))
        for number in range(config.producers):
            self.world.producers.append(self._new_producer(number))
        director = self.world.scheduler.process("director")
        for action in self.world.plan.actions:
            self.world.scheduler.spawn(director, str(action), lambda action=action: self._act(action), action.at)  # type: ignore[misc]

    def _new_producer(self, number: int) -> Process:
        offset = self.world.plan.config.offsets[4 + number]
        process = self.world.scheduler.process(f"producer{number}", offset, f"host-producer{number}")
        self.world.app_for(process)
        return process

    def _act(self, action: Action) -> None:
        kind, what = action.kind, action.what
        self.world.coverage.hit("action", kind)
        if kind == "call":
            number, producer, spec, name, script, options = what
            process = self.world.producers[producer]
            call = Call(number, self.world.plan.specs[spec], f"{spec}:{name}", process, self.world.scheduler.now)
            self.calls[number] = call
            self.world.ledger.calls.append(call)
            self.world.scheduler.spawn(process, f"call {number}", lambda: self._call(call, script, options))
            return
        self.world.ledger.note(f"== {kind} {' '.join(map(str, what))}")
        getattr(self, "_" + kind.replace(" ", "_"))(*what)

    def _call(self, call: Call, script: dict[str, Any], options: dict[str, Any]) -> None:
        app = self.world.apps[call.producer.pid]
        task = app.celery.tasks[call.spec.name]
        self.world.coverage.hit("lifetime", call.spec.lock)
        self.world.coverage.hit("policy", f"{call.spec.enqueue}/{call.spec.run}")
        try:
            result = task.apply_async(kwargs={"name": call.name, "script": script}, **options)
            call.result_id = result.id
            call.conflict = getattr(result, "lock_conflict", None) is not None
        except Exception as error:
            call.error = error
        call.ended = self.world.scheduler.now
        told = call.error or (f"told of {call.result_id}" if call.conflict else f"published {call.result_id}")
        self.world.ledger.note(f"{call.producer.name} call {call.number} of {call.name}: {told}")
        self.world.coverage.hit(
            "call", type(call.error).__name__ if call.error else "told" if call.conflict else "published"
        )
        self.world.properties.called(call)

    def _with_lock(self, producer: int, name: str, wait: float, seconds: float) -> None:
        """A lock without a task, which competes with tasks for the same name."""
        process = self.world.producers[producer]
        locks = EtcdLocks.from_app(self.world.apps[process.pid].celery)

        def hold() -> None:
            try:
                with locks.lock(name, wait_timeout=wait):
                    self.world.scheduler.sleep(seconds)
                self.world.coverage.hit("standalone lock", "held")
            except EtcdLockError as error:
                self.world.coverage.hit("standalone lock", type(error).__name__)

        self.world.scheduler.spawn(process, "with lock", hold)

    def _copy(self, number: int) -> None:
        call = self.calls.get(number)
        sent = self.world.ledger.sent.get(call.result_id or "") if call is not None and not call.conflict else None
        if sent:
            self.world.broker.put(self.world.chance.choice(sent).message.again())

    def _forged_copy(self, number: int, headers: dict[str, Any]) -> None:
        call = self.calls.get(number)
        sent = self.world.ledger.sent.get(call.result_id or "") if call is not None and not call.conflict else None
        if sent:
            message = self.world.chance.choice(sent).message.again()
            message.headers.update(headers)
            self.world.ledger.forged.add(message.task_id)
            self.world.broker.put(message)

    def _revoke(self, number: int, terminate: bool) -> None:
        call = self.calls.get(number)
        if call is None or call.conflict or call.result_id is None:
            return
        self.world.ledger.revoked.add(call.result_id)
        for worker in self.world.workers:
            if worker.process.alive and hasattr(worker, "consumer"):
                worker.revoke(call.result_id, terminate)

    def _who(self, who: str) -> list[Process]:
        if who == "all":
            return [process for process in self.world.scheduler.processes.values() if process.alive]
        if who == "runner":
            return [run.process for run in self.world.ledger.running[:1]]
        found = [*self.world.producers, *(worker.process for worker in self.world.workers)]
        chosen = [process for process in found if process.name == who]
        for worker in self.world.workers:
            if worker.name == who and hasattr(worker, "pool"):
                chosen += [child.process for child in worker.pool.children]
        return chosen

    def _change_links(self, who: str, seconds: float, **changes: Any) -> None:
        links = [self.world.etcd.link(process) for process in self._who(who)]
        well = Link(lose_reply=self.world.plan.config.lose_reply)
        for link in links:
            for name, value in changes.items():
                setattr(link, name, value)
        self.world.ledger.disturbed(seconds)
        self.world.scheduler.sleep(seconds)
        for link in links:
            for name in changes:
                setattr(link, name, getattr(well, name))

    def _deaf(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, deaf=True)

    def _cut(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, cut=True)

    def _refused(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, refused=True)

    def _flaky(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, lose_reply=0.5, lose_request=0.1)

    def _late(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, late_request=0.5)

    def _slow(self, who: str, seconds: float) -> None:
        self._change_links(who, seconds, latency=0.4)

    def _freeze(self, who: str, seconds: float) -> None:
        processes = self._who(who)[:1]
        for process in processes:
            self.world.scheduler.freeze(process)
        self.world.ledger.disturbed(seconds)
        self.world.scheduler.sleep(seconds)
        for process in processes:
            self.world.scheduler.thaw(process)

    def _kill_child(self) -> None:
        for run in self.world.ledger.running[:1]:
            for worker in self.world.workers:
                for child in worker.pool.children:
                    if child.process is run.process:
                        worker.pool.child_dies(child)
                        return

    def _kill_worker(self, name: str) -> None:
        number = int(name.removeprefix("worker"))
        worker = self.world.workers[number]
        if not worker.process.alive or not hasattr(worker, "pool"):
            return
        for child in list(worker.pool.children):
            if child.job is not None:
                self.world.ledger.excused[child.job.task_id] = "its worker died"
            self.world.dies(child.process)
        # And those whose child died a moment ago, of which the worker hasn't told anybody.
        for job in (*worker.pool.jobs, *worker.pool.dying):
            self.world.ledger.excused.setdefault(job.task_id, "its worker died")
        self.world.dies(worker.process)
        self.world.broker.connection_lost(worker.process)
        self.world.workers[number] = Worker(self.world, name, self.world.plan.config.offsets[number])

    def _stop_producer(self, name: str, gently: bool) -> None:
        number = int(name.removeprefix("producer"))
        process = self.world.producers[number]
        app = self.world.apps[process.pid]
        if gently and all(call.ended is not None for call in self.world.ledger.calls if call.producer is process):

            def stop() -> None:
                EtcdLocks.from_app(app.celery).close()
                self.world.scheduler.kill(process)

            self.world.scheduler.spawn(process, "exit", stop)
        else:
            self.world.dies(process)
        self.world.producers[number] = self._new_producer(number)

    def _leader(self) -> None:
        self.world.etcd.change_leader()
        self.world.ledger.disturbed()

    def _compact(self) -> None:
        self.world.etcd.compact()

    def _broker_down(self, seconds: float) -> None:
        self.world.broker.down = True
        self.world.scheduler.sleep(seconds)
        self.world.broker.down = False
        self.world.broker._wake()

    def _connection_lost(self, name: str) -> None:
        worker = self.world.workers[int(name.removeprefix("worker"))]
        if hasattr(worker, "consumer"):
            worker.lose_connection()
