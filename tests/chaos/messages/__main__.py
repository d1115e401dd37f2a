"""``python -m tests.chaos.messages``: messages alone, with choices; ``python -m tests.chaos`` runs them after locks."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.messages.plan import LIFETIMES
from tests.chaos.messages.runs import LANES, MessageRuns, report, why_left_out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.messages", description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", default=",".join(LANES), help="comma-separated; all by default")
    parser.add_argument("--lifetimes", default=",".join(LIFETIMES), help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=8, help="histories at once in each lane")
    parser.add_argument("--seconds", type=float, help="start no new seed after so long")
    parser.add_argument("--drain", action="store_true", help="at the end, wait until all leases are over, and look")
    parser.add_argument("--keep", type=Path, help="a directory for logs; by default a temporary one")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        seeds = list(range(chosen.first_seed, chosen.first_seed + chosen.seeds))
        return run(
            chosen.lanes.split(","),
            chosen.keep or Path(temporary),
            seeds,
            chosen.size,
            chosen.seconds,
            drain=chosen.drain,
            lifetimes=chosen.lifetimes.split(","),
        )


def run(
    names: list[str],
    directory: Path,
    seeds: list[int],
    size: int,
    seconds: float | None = None,
    *,
    drain: bool = False,
    lifetimes: Sequence[str] = LIFETIMES,
) -> int:
    """Returns how many things were wrong."""
    for name in names:
        reason = why_left_out(name)
        if reason is not None:
            print(f"left out: messages on {name}: {reason}", flush=True)
    runs = MessageRuns([name for name in names if why_left_out(name) is None], directory, size, lifetimes)
    left: list[str] = []
    try:
        runs.start()
        runs.run(seeds, seconds)
        if drain:
            left = runs.drain()
    finally:
        runs.stop()
    print()
    print(report(runs.totals))
    for key in left:
        print(f"WRONG: left when all leases should be over: {key}")
    return len(left) + sum(sum(each.wrong.values()) for each in runs.totals.values())


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
