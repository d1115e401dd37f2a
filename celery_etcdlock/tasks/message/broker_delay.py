"""Lets RabbitMQ keep a delayed message of a quorum queue, whatever exchange the queue is on.

A worker keeps a delayed message in its own memory, and raises its prefetch count by one. On quorum queues that count is
fixed, so a few delayed messages would block the worker. Celery (5.5 and later) lets RabbitMQ keep them, in queues that
a worker declares when it starts, but only for queues on a topic exchange, which isn't the default. All delayed messages
come out of one exchange, so we bind the queue to that exchange by a key of its own. We do that before each message,
since a message without a binding would be lost.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from celery_etcdlock.interruptions import interrupts

try:
    from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE, MAX_NUMBER_OF_BITS_TO_USE
except ImportError:  # Celery 5.4
    CELERY_DELAYED_DELIVERY_EXCHANGE = ""
    MAX_NUMBER_OF_BITS_TO_USE = 0


logger = logging.getLogger("celery_etcdlock")

#: Begins the routing keys of our bindings, which must be like nobody else's.
KEY_PREFIX = "etcdlock."


def has_quorum_queues(app: Celery) -> bool:
    if app.conf.get("task_default_queue_type") == "quorum":
        return True
    return any(_is_quorum(queue) for queue in app.amqp.queues.values())


def _is_quorum(queue: Any) -> bool:
    return (queue.queue_arguments or {}).get("x-queue-type") == "quorum"


def with_delay(app: Celery, delivery_info: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Options to publish the message again that came by ``delivery_info``, to its own queue, after ``seconds``."""
    queue: Any = _came_from(app, delivery_info or {}) if CELERY_DELAYED_DELIVERY_EXCHANGE else None
    if queue is None:
        return {"countdown": seconds}
    key = KEY_PREFIX + queue.name
    pool: Any = app.pool
    try:
        with pool.acquire(block=True) as connection, connection.channel() as channel:
            queue.bind(channel).bind_to(CELERY_DELAYED_DELIVERY_EXCHANGE, routing_key=f"#.{key}")
    except Exception as error:
        if interrupts(error):
            raise
        # Whatever it was, the message must be published.
        logger.warning(
            "quorum queue %r can't be bound for delays, so a worker keeps the message in memory: %s", queue.name, error
        )
        return {"countdown": seconds}
    delayed = copy.copy(queue)
    # What Celery has to see to take its own way for delays; the message goes elsewhere.
    delayed.exchange = Exchange("etcdlock", type="topic")
    delayed.routing_key = key
    # In whole seconds; none at all is an error.
    return {"queue": delayed, "countdown": math.ceil(seconds)}


def _came_from(app: Celery, delivery_info: dict[str, Any]) -> Queue | None:
    key = str(delivery_info.get("routing_key") or "")
    digits = key.split(".")[:MAX_NUMBER_OF_BITS_TO_USE]
    if delivery_info.get("exchange") and len(digits) == MAX_NUMBER_OF_BITS_TO_USE and set(digits) <= {"0", "1"}:
        key = key[2 * MAX_NUMBER_OF_BITS_TO_USE :]
    queues = [queue for queue in app.amqp.queues.values() if _is_quorum(queue)]
    name = key.removeprefix(KEY_PREFIX)
    for queue in queues:
        if queue.name == name:
            return queue
    return next((queue for queue in queues if queue.routing_key == key), None)
