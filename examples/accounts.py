"""One sync at a time for each account, different accounts side by side.

Calls for an account that is being synced come back later, until its lock is free; none is lost.
"""

from __future__ import annotations

import time

from celery import Celery

from celery_etcdlock import singleton_task
from examples.support import at_once, expect, expect_no_overlap, inside, say, spans, workers

app = Celery("accounts")


@singleton_task(app=app, name="sync", unique_on=["account"], on_conflict="retry")
def sync(account: str, page: int) -> str:
    with inside(f"sync {account}"):
        time.sleep(0.2)
    return f"{account} {page}"


def main() -> None:
    with workers("examples.accounts", "-c", "4"):
        results = [sync.delay(account, page) for page in range(4) for account in ("anna", "bob", "carol")]
        done = [result.get(timeout=60) for result in results]
    say(f"{len(done)} calls for 3 accounts ran, up to {at_once('sync')} at once.")
    expect_no_overlap("sync")
    expect(len(spans("sync")) == 12, "every call ran once")
    expect(at_once("sync") > 1, "different accounts ran side by side")
