"""At most three calls at once to an API that allows no more, whatever the number of workers and their slots."""

from __future__ import annotations

import time

from celery import Celery

from celery_etcdlock import singleton_task
from examples.support import at_once, expect, inside, say, workers

LIMIT, CALLS = 3, 24
app = Celery("api_limit")


@singleton_task(app=app, name="call_api", lock_limit=LIMIT, on_conflict="retry")
def call_api(number: int) -> int:
    with inside("api"):
        time.sleep(0.15)
    return number


def main() -> None:
    with workers("examples.api_limit", "-c", "4"):
        results = [call_api.delay(number) for number in range(CALLS)]
        done = sorted(result.get(timeout=60) for result in results)
    say(f"{len(done)} calls by 8 slots, up to {at_once('api')} at once.")
    expect(at_once("api") <= LIMIT, f"never more than {LIMIT} at once")
    expect(at_once("api") == LIMIT, f"{LIMIT} at once when there is enough to do")
    expect(done == list(range(CALLS)), "every call ran")
