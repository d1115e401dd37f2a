"""``python -m benchmarks [NAME...] [--quick] [--json FILE] [--plot FILE]``: the one entry point."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import machine, measurements
from benchmarks.bench import Bench
from benchmarks.plot import svg
from benchmarks.result import Result

BUSY_PERCENT = 10.0


def main(arguments: list[str] | None = None) -> int:
    """0: all measured; 1: something couldn't be measured. A goal that isn't met is a figure, not a failure."""
    names = [module.name for module in pkgutil.iter_modules(measurements.__path__)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run, of {', '.join(names)}; default all")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write tables and rounds there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write bars of the main figures there, as SVG")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where servers keep their data: a real disk")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in names]
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)} (there are {', '.join(names)})")
    signal.signal(signal.SIGTERM, _interrupt)
    report: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": chosen.quick,
        "machine": machine.describe(),
        "measurements": {},
    }
    failed = []
    try:
        for name in chosen.names or names:
            with tempfile.TemporaryDirectory(prefix="etcdlock-bench-", dir=chosen.scratch) as scratch:
                outcome = _measure(Bench(name, chosen.quick, Path(scratch)))
            report["measurements"][name] = outcome
            _write(report, chosen.json, chosen.plot)
            if "error" in outcome:
                failed.append(name)
    except KeyboardInterrupt:
        print("interrupted; all servers are stopped", file=sys.stderr)
        return 130
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _write(report: dict[str, Any], results: Path | None, plot: Path | None) -> None:
    """After each measurement, so that an interrupted run leaves what it had."""
    for path, text in ((results, json.dumps(report, indent=1) + "\n"), (plot, svg(report))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _measure(bench: Bench) -> dict[str, Any]:
    busy = machine.busy_percent()
    used = machine.Usage()
    started = time.monotonic()
    try:
        result: Result = importlib.import_module(f"benchmarks.measurements.{bench.name}").run(bench)
    except Exception as error:
        traceback.print_exc()
        print(f"{bench.name}: not measured: {error}\n", flush=True)
        return {"error": f"{type(error).__name__}: {error}", "busy_percent_before": busy}
    if busy is not None and busy > BUSY_PERCENT:
        result.notes.append(f"others used {busy:.0f} % of the machine when this began: measure again when it is quiet")
    if bench.quick:
        result.notes.append("quick run: too few rounds for a figure to quote")
    print(result.text(), end="\n\n", flush=True)
    return result.as_json() | {
        "busy_percent_before": busy,
        "busy_percent_during": used.percent(),
        "load_average": os.getloadavg(),
        "seconds": round(time.monotonic() - started, 1),
    }


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
