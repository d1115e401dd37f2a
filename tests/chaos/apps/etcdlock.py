"""celery-etcdlock."""

from __future__ import annotations

from typing import Any

from celery_etcdlock import LockLost, SingletonTask, current_lock
from tests.chaos.apps.common import DURABLE, LANE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()
app.conf.update(etcdlock_endpoints=STORE, etcdlock_ttl=TTL_SECONDS, etcdlock_timeout=1.5)

OPTIONS: dict[str, Any] = {
    "base": SingletonTask,
    "bind": True,
    "lock_key": LANE,
    "autoretry_for": (LockLost,),
    "retry_backoff": False,
    "default_retry_delay": 0,
    "max_retries": None,
    **DURABLE,
}


def _inside(task: Any, seconds: float) -> None:
    lock = current_lock()
    inside(task.request.id, seconds, token=lock.fencing_token, check=lock.check)


@app.task(name="work", on_conflict="skip", **OPTIONS)
def work(self: Any, seconds: float) -> None:
    _inside(self, seconds)


@app.task(name="keep", on_conflict="retry", wait_timeout=600, **OPTIONS)
def keep(self: Any, seconds: float) -> None:
    _inside(self, seconds)
