"""``docker-compose run --rm demo``: fires duplicates at both workers and says what became of them."""

from __future__ import annotations

import sys
import time
from collections import Counter

from celery.result import AsyncResult

from examples.stack.app import app, journal, rebuild_index, sync

SECONDS = 60
ACCOUNTS = ("anna", "bob")


def main() -> int:
    wait_for_workers()
    journal.forget("rebuild_index", *(f"sync {account}" for account in ACCOUNTS))
    print("10 x rebuild_index, of which one may run at a time; the others are skipped ...")
    rebuilt = [rebuild_index.delay(2.0) for _ in range(10)]
    print("5 x sync for each of two accounts, one at a time for each; the others come back later ...")
    synced = [sync.delay(account, number, 0.2) for number in range(5) for account in ACCOUNTS]
    good = True
    for what, results in (("rebuild_index", rebuilt), ("sync", synced)):
        states = Counter(wait_for(result) for result in results)
        print(f"\n{what}: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}")
        skipped = next((result for result in results if result.state == "REVOKED"), None)
        if skipped is not None:
            print(f"  a skipped one's result: {skipped.result}")
        good &= states["SUCCESS"] == len(results) if what == "sync" else states["SUCCESS"] >= 1
    print()
    for key in ("rebuild_index", *(f"sync {account}" for account in ACCOUNTS), "report"):
        seen = journal.seen(key)
        rising = seen.tokens == sorted(set(seen.tokens))
        good &= seen.at_once <= 1 and rising
        where = " and ".join(seen.hosts) or "nowhere yet"
        print(f"{key}: ran {seen.entered} times, on {where}; at most {seen.at_once} at once; fencing tokens", end=" ")
        print("rise" if rising else f"DON'T RISE: {seen.tokens}")
    print("\nNever two at once." if good else "\nNOT as promised: see above.")
    return 0 if good else 1


def wait_for_workers() -> None:
    deadline = time.monotonic() + SECONDS
    while len(app.control.ping(timeout=1.0)) < 2:
        if time.monotonic() > deadline:
            sys.exit("The two workers don't answer. Is the stack up? docker-compose ps; docker-compose logs alpha beta")


def wait_for(result: AsyncResult[None]) -> str:
    result.get(timeout=SECONDS, propagate=False)
    return result.state


if __name__ == "__main__":
    sys.exit(main())
