"""``python -m tests.simulation``: many seeds, or one of them once more."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings

if __name__ == "__main__" and os.environ.get("PYTHONHASHSEED") != "0":
    # Sets of texts are walked in an order that depends on it.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])

from collections import Counter

from tests.simulation.coverage import Coverage
from tests.simulation.plan import make_plan
from tests.simulation.properties import IGNORED
from tests.simulation.shrink import shrink
from tests.simulation.world import play


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--ignore", action="append", default=[])
    arguments = parser.parse_args()
    IGNORED.update(arguments.ignore)
    warnings.simplefilter("ignore")
    coverage = Coverage()
    if arguments.seed is not None:
        outcome = play(make_plan(arguments.seed), coverage)
        if arguments.shrink and outcome.violation is not None:
            outcome = shrink(outcome, play)
        print(outcome.plan)
        print("\n".join(outcome.lines))
        print(outcome.violation, outcome.digest)
        return 1 if outcome.violation else 0
    began = time.perf_counter()
    found: Counter[str] = Counter()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        outcome = play(make_plan(seed), coverage)
        if outcome.violation is not None:
            found[outcome.violation.rule] += 1
            print(seed, str(outcome.violation)[:200], flush=True)
    seconds = time.perf_counter() - began
    print(f"{arguments.seeds} seeds in {seconds:.1f} s: {dict(found)}")
    print(coverage.report())
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
