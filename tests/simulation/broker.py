"""A message broker that delivers at least once: late, twice, out of order, and again after a while.

Two kinds, as real ones. ``redis`` delivers again what isn't acknowledged within a visibility time-out, though its
worker lives, and so too what a lost worker had. ``amqp`` puts that back as soon as the connection is lost, and drops
what expires in its queue. Only what is delivered *again* is marked as redelivered, and only by its broker's own doing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from kombu.exceptions import OperationalError

from tests.simulation.scheduler import Process, Scheduler, Thread

__all__ = ["Broker", "Message", "Producer"]


#: Messages that are pushed twice in one play: copies that wait are published again and again, and each of these may be
#: pushed twice as well, until there are more of them than can ever run.
MOST_DUPLICATES = 40


@dataclass(eq=False)
class Message:
    """One message on its way. ``number`` is that of its publication: copies share it."""

    number: int
    headers: dict[str, Any]
    body: str
    properties: dict[str, Any]
    delivery_info: dict[str, Any]
    redelivered: bool = False
    #: By the clock of who published it.
    expires_at: float | None = None
    content_type: str = "application/json"
    content_encoding: str = "utf-8"

    @property
    def task_id(self) -> str:
        return str(self.headers["id"])

    @property
    def payload(self) -> Any:
        return json.loads(self.body)

    def again(self, *, redelivered: bool = True) -> Message:
        info = {**self.delivery_info, "redelivered": redelivered}
        headers, properties = copy.deepcopy(self.headers), dict(self.properties)
        return Message(self.number, headers, self.body, properties, info, redelivered, self.expires_at)


@dataclass(eq=False)
class Unacked:
    message: Message
    worker: Process
    channel: int
    delivered_at: float


class Broker:
    """See the module."""

    def __init__(self, scheduler: Scheduler, kind: str, visibility_timeout: float) -> None:
        self._scheduler = scheduler
        self.kind = kind
        self.visibility_timeout = visibility_timeout
        self.process = scheduler.process("broker")
        self.queue: list[Message] = []
        self.unacked: dict[int, Unacked] = {}
        self.consumers: list[Thread] = []
        self.down = False
        self.lose_confirm = 0.0
        self.duplicate = 0.0
        self._duplicates = 0
        self.delay = 0.0
        self._numbers = 0
        self._tags = 0
        self.late = 0
        self.on_publish: Callable[[Message], None] = lambda message: None
        self.on_gone: Callable[[Message, str], None] = lambda message, why: None
        scheduler.spawn(self.process, "visibility", self._restore_visible)

    # --- in -------------------------------------------------------------------------------------------------------

    def publish(
        self,
        headers: dict[str, Any],
        body: Any,
        properties: dict[str, Any],
        routing_key: str,
        expiration: float | None = None,
    ) -> None:
        scheduler = self._scheduler
        scheduler.sleep(0.001 + 0.002 * scheduler.chance.random())
        if self.down:
            raise OperationalError("the model's broker is down")
        self._numbers += 1
        message = Message(
            self._numbers,
            json.loads(json.dumps(headers)),
            json.dumps(body),
            json.loads(json.dumps(properties)),
            {"exchange": "", "routing_key": routing_key, "redelivered": False},
            expires_at=None if expiration is None else scheduler.now + max(0.0, expiration),
        )
        self.on_publish(message)
        self.put(message)
        if scheduler.chance.random() < self.duplicate and self._duplicates < MOST_DUPLICATES:
            self._duplicates += 1
            # Pushed twice, as a broker does that fails over: the second is marked as redelivered.
            self.put(message.again(), 30.0 * scheduler.chance.random() ** 2)
        if scheduler.chance.random() < self.lose_confirm:
            raise OperationalError("the model's broker took the message, and its answer got lost")

    def put(self, message: Message, delay: float = 0.0) -> None:
        delay += self.delay * self._scheduler.chance.random()
        if delay:
            self.late += 1

            def arrive() -> None:
                self.late -= 1
                self._put(message)

            self._scheduler.spawn(self.process, "late message", arrive, delay)
        else:
            self._put(message)

    def _put(self, message: Message) -> None:
        self.queue.append(message)
        self._wake()

    def _wake(self) -> None:
        consumers, self.consumers = self.consumers, []
        for thread in consumers:
            self._scheduler.unpark(thread)

    # --- out ------------------------------------------------------------------------------------------------------

    def take(self, worker: Process, channel: int) -> tuple[int, Message] | None:
        """The next message; mostly in order."""
        if self.down:
            return None
        if self.kind == "amqp":
            self._drop_expired()
        if not self.queue:
            return None
        chance = self._scheduler.chance
        at = 0 if chance.random() < 0.8 else chance.randrange(len(self.queue))
        message = self.queue.pop(at)
        self._tags += 1
        self.unacked[self._tags] = Unacked(message, worker, channel, self._scheduler.now)
        return self._tags, message

    def _drop_expired(self) -> None:
        for message in list(self.queue):
            if message.expires_at is not None and message.expires_at < self._scheduler.now:
                self.queue.remove(message)
                self.on_gone(message, "expired")

    def ack(self, tag: int) -> None:
        delivery = self.unacked.pop(tag, None)
        if delivery is not None:
            self._wake()  # there is room in somebody's prefetch count
            self.on_gone(delivery.message, "acked")

    def reject(self, tag: int, requeue: bool) -> None:
        delivery = self.unacked.pop(tag, None)
        if delivery is None:
            return
        self._wake()
        if requeue:
            self.put(delivery.message.again())
        else:
            self.on_gone(delivery.message, "rejected")

    def connection_lost(self, worker: Process, channel: int | None = None) -> None:
        """What the worker had comes again: at once, or when its visibility time-out is over."""
        if self.kind == "redis":
            return
        for tag, delivery in list(self.unacked.items()):
            if delivery.worker is worker and channel in (None, delivery.channel):
                del self.unacked[tag]
                self.put(delivery.message.again())

    def _restore_visible(self) -> None:
        while True:
            self._scheduler.sleep(1.0 if self.unacked else 5.0)
            if self.kind != "redis":
                continue
            before = self._scheduler.now - self.visibility_timeout
            for tag, delivery in list(self.unacked.items()):
                if delivery.delivered_at < before:
                    del self.unacked[tag]
                    self.put(delivery.message.again())

    def holds(self, task_id: str) -> bool:
        return any(message.task_id == task_id for message in self.queue) or any(
            delivery.message.task_id == task_id for delivery in self.unacked.values()
        )


class Producer:
    """What Celery publishes with."""

    def __init__(self, broker: Callable[[], Broker]) -> None:
        self._broker = broker
        transport = SimpleNamespace(driver_type="redis")
        self.connection = SimpleNamespace(
            transport=transport,
            _reraise_as_library_errors=nullcontext,
            connection=SimpleNamespace(transport=transport),
            recoverable_connection_errors=(OperationalError,),
            recoverable_channel_errors=(),
        )
        self.connections = SimpleNamespace(connection=self.connection)

    def publish(self, body: Any, *, routing_key: str = "", headers: Any = None, **options: Any) -> None:
        properties = {
            name: options[name] for name in ("reply_to", "correlation_id", "priority") if options.get(name) is not None
        }
        self._broker().publish(headers, body, properties, routing_key, options.get("expiration"))

    @contextmanager
    def acquired(self, *_: Any, **__: Any) -> Any:
        yield self

    def revive(self, *_: Any) -> None:
        pass
