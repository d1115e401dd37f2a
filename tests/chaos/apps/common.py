"""An app for one lane; where its servers are comes by environment."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

LANE = os.environ["CHAOS_LANE"]
STORE = os.environ["CHAOS_STORE"]
TTL_SECONDS = int(os.environ["CHAOS_TTL"])

#: What every contender's tasks get, so that a message is given up only when its task has come to an end.
DURABLE: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True}


def new_app() -> Celery:
    app = Celery(LANE, broker=os.environ["CHAOS_BROKER"])
    app.conf.update(
        task_default_queue=LANE,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": int(os.environ["CHAOS_VISIBILITY_TIMEOUT"])},
    )
    return app
