"""``python -m tests.strikes [NAME ...]``: strikes, at every place of each, and prints a line of JSON for each."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable

from tests.strikes import instrument


def main() -> None:
    instrument.install()
    # Only now, for they import the package.
    from tests.strikes import group_commit, scenarios
    from tests.strikes.striker import Striker, strike_everywhere

    wanted = sys.argv[1:]
    app = scenarios.make_app()
    runs: dict[str, Callable[[Striker], None]] = {
        each.__name__: functools.partial(scenarios.strike, app, each) for each in scenarios.SCENARIOS
    }
    runs |= {way: functools.partial(group_commit.strike, way) for way in group_commit.WAYS}
    # What was struck in one scenario isn't in the next; whom the group commit's others are makes each way another.
    seen: set[int] = set()
    for name, run in runs.items():
        if not wanted or name in wanted:
            report = strike_everywhere(run, set() if name in group_commit.WAYS else seen)
            print(json.dumps({"name": name} | report._asdict()), flush=True)


if __name__ == "__main__":
    main()
