"""``python -m tests.simulation``: many seeds, or one of them once more, with its schedule, made as small as it gets."""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter

from tests.simulation.coverage import Coverage
from tests.simulation.plan import make_plan
from tests.simulation.properties import IGNORED, transitions
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one and print its schedule, shrunk if it fails")
    parser.add_argument("--whole", action="store_true", help="with --seed: as it is, not shrunk")
    parser.add_argument("--seeds", type=int, default=200, help="how many (200)")
    parser.add_argument("--start", type=int, help="the first of them; by chance unless given")
    parser.add_argument("--minutes", type=float, help="for so long instead of so many")
    parser.add_argument("--ignore", action="append", default=[], metavar="RULE", help="to see behind a known fault")
    arguments = parser.parse_args()
    IGNORED.update(arguments.ignore)
    warnings.simplefilter("ignore")
    if arguments.seed is not None:
        return _one(arguments.seed, whole=arguments.whole)
    start = random.SystemRandom().randrange(10**9) if arguments.start is None else arguments.start
    return _many(start, arguments.seeds, arguments.minutes)


def _one(seed: int, *, whole: bool) -> int:
    outcome = play(make_plan(seed))
    if outcome.violation is not None and not whole:
        outcome = shrink(outcome, play)
    _explain(outcome)
    return 1 if outcome.violation else 0


def _many(start: int, seeds: int, minutes: float | None) -> int:
    coverage, found = Coverage(), Counter[str]()
    began = time.monotonic()
    ends_at = None if minutes is None else began + 60 * minutes
    print(f"seeds from {start} on", flush=True)
    seed, steps, simulated = start, 0, 0.0
    while seed < start + seeds if ends_at is None else time.monotonic() < ends_at:
        outcome = play(make_plan(seed), coverage)
        steps, simulated = steps + outcome.steps, simulated + outcome.seconds
        if outcome.violation is not None:
            found[outcome.violation.rule] += 1
            print(f"seed {seed}: {str(outcome.violation)[:250]}", flush=True)
            if found.total() == 1:
                _explain(shrink(outcome, play))
        seed += 1
        if (seed - start) % 500 == 0:
            print(f"{seed - start} seeds, {found.total()} failed, {len(coverage.states)} states of a lock", flush=True)
    print(coverage.report())
    unvisited = transitions() - set(coverage.of("key"))
    print(f"transitions of keys: {len(transitions())} in the table, not seen: {', '.join(sorted(unvisited)) or 'none'}")
    print(
        f"{seed - start} seeds ({start} to {seed - 1}), {steps} steps, {simulated / 3600:.1f} simulated hours in "
        f"{time.monotonic() - began:.0f} s: " + (f"FAILED {dict(found)}" if found else "all properties held")
    )
    if found:
        print("again: python -m tests.simulation --seed SEED")
    return 1 if found else 0


def _explain(outcome: Outcome) -> None:
    print(outcome.plan)
    print("\n".join(line[:300] for line in outcome.lines))
    print(outcome.violation or "all properties held")


if __name__ == "__main__":
    sys.exit(main())
