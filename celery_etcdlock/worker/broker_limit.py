"""How long a message may stay unacknowledged, and so how long it may wait in the worker.

After that the broker delivers it again (Redis, SQS: ``visibility_timeout``), or closes the channel with all messages on
it (RabbitMQ: ``consumer_timeout``, which a client can't read: the default is assumed where no queue says otherwise).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celery_etcdlock.core.policies import having
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.tasks.singleton_task import SingletonTask
from celery_etcdlock.worker.check_settings import policy_names

#: The part of the limit that one wait in the worker may take: the rest is for the queue, the pool and the body.
SHARE = 0.4
#: RabbitMQ's ``consumer_timeout`` where nobody changed it, in seconds. SQS and others have the same.
ASSUMED_SECONDS = 1800.0
#: kombu's ``visibility_timeout`` for Redis.
REDIS_SECONDS = 3600.0
#: What a queue of RabbitMQ may say of itself, in milliseconds.
QUEUE_ARGUMENT = "x-consumer-timeout"


@dataclass(frozen=True, slots=True)
class BrokerLimit:
    """``setting`` is where the limit comes from, in words."""

    seconds: float
    setting: str

    @property
    def longest_wait_seconds(self) -> float:
        return self.seconds * SHARE


def broker_limit(app: Celery) -> BrokerLimit:
    """The limit of this app's broker. Connects to nothing."""
    asked = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    where = "visibility_timeout in broker_transport_options"
    if asked is not None:
        return BrokerLimit(float(asked), where)
    transport: Any = app.connection_for_read().transport
    if transport.driver_type == "redis":
        return BrokerLimit(REDIS_SECONDS, where)
    if transport.driver_type != "amqp":
        return BrokerLimit(ASSUMED_SECONDS, where)
    asked_by_queues = [(queue.queue_arguments or {}).get(QUEUE_ARGUMENT) for queue in app.amqp.queues.values()]
    seconds = min((float(each) / 1000 for each in asked_by_queues if each), default=None)
    if seconds is not None:
        return BrokerLimit(seconds, f"{QUEUE_ARGUMENT} of a queue")
    return BrokerLimit(ASSUMED_SECONDS, f"the default consumer_timeout; {QUEUE_ARGUMENT} of a queue tells of another")


def waits_that_do_not_fit(
    tasks: Iterable[SingletonTask[Any, Any]], settings: Settings, limit: BrokerLimit
) -> str | None:
    """A warning that names the tasks that may wait for longer than the broker lets the worker keep their message."""
    waits = {
        task.name: task._lock_plan.options.wait_timeout
        for task in tasks
        if having(policy_names(task._lock_plan.options, settings), lambda facts: facts.waits)
    }
    too_long = {name: seconds for name, seconds in waits.items() if seconds > limit.longest_wait_seconds}
    if not too_long:
        return None
    return (
        f"wait_timeout is longer than a message can wait in a worker, which is {limit.longest_wait_seconds:g} s, "
        f"{SHARE} of the broker's limit of {limit.seconds:g} s ({limit.setting}): "
        f"{', '.join(f'{name} ({seconds:g} s)' for name, seconds in sorted(too_long.items()))}. After that the message "
        "is published again, and briefly occupies a pool slot. "
        f"Raise the limit to {max(too_long.values()) / SHARE:g} s, or lower wait_timeout"
    )
