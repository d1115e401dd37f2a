"""``python -m tests.strikes [--deep] [NAME ...]``: strikes at every place of each, and prints a line of JSON for each.

A place that was struck on behalf of the same caller isn't struck in what comes after it, unless it is ``--deep``: then
every way to each place counts, in each again. That takes minutes. Ends with 1 where a strike left something behind.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable

from tests.strikes import instrument


def main() -> int:
    instrument.install()
    # Only now, for they import the package.
    from tests.strikes import group_commit, scenarios
    from tests.strikes.striker import DEEP, SHALLOW, Striker, strike_everywhere

    deep = "--deep" in sys.argv
    wanted = [name for name in sys.argv[1:] if name != "--deep"]
    app = scenarios.make_app()
    runs: dict[str, Callable[[Striker], None]] = {
        each.__name__: functools.partial(scenarios.strike, app, each) for each in scenarios.SCENARIOS
    }
    found = 0
    runs |= {way: functools.partial(group_commit.strike, way) for way in group_commit.WAYS}
    # The ways of the group commit differ by what others do.
    seen: set[int] = set()
    for name, run in runs.items():
        if not wanted or name in wanted:
            alone = deep or name in group_commit.WAYS
            report = strike_everywhere(run, set() if alone else seen, depth=DEEP if deep else SHALLOW)
            found += len(report.troubles)
            print(json.dumps({"name": name} | report._asdict()), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
