"""``make chaos`` and ``make chaos-peers``: real workers, real servers, faults, and what they did.

    python -m tests.chaos                  # ours: all faults, 20 seeds each, on locks and on messages
    python -m tests.chaos --short          # some faults, few seeds: for CI
    python -m tests.chaos --peers          # the peers too, side by side; of the lock's faults
    python -m tests.chaos --part messages  # or locks: only these

Exits with 1 when ours did what it must not: an overlap but for a stopped holder's, a stale write accepted, a task lost;
or a message that didn't end as is promised (``tests.chaos.messages``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.checker import Counts
from tests.chaos.contenders import OURS, PEERS, Contender
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.messages import __main__ as of_messages
from tests.chaos.messages.runs import LANES, why_left_out
from tests.chaos.network import Network, why_none
from tests.chaos.runs import Runs, together
from tests.chaos.stores import EtcdStore, NetworkedEtcdStore, RedisStore, start_broker
from tests.redis_server import RedisServer

SHORT = ("kill -9: child", "stop: child", "leader killed", "network: worker from etcd", "delivered twice")
SHORT_LANES = ("redis-clocks",)
#: Deletes by third parties are outside of what a lock can promise (P2); fencing holds all the same.
OUTSIDE = ("admin deletes", "admin revokes")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, help="seeds for each fault (20; 2 with --short)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", help="comma-separated; all by default")
    parser.add_argument("--only", help="contenders, comma-separated: " + ", ".join(one.app for one in (OURS, *PEERS)))
    parser.add_argument("--peers", action="store_true", help="the peers, too")
    parser.add_argument("--part", choices=("locks", "messages", "both"), default="both", help="locks with --peers")
    parser.add_argument("--short", action="store_true", help="a few faults and seeds, for CI")
    parser.add_argument("--lanes", type=int, default=4, help="how many runs go on at once")
    parser.add_argument("--ttl", type=int, default=3, help="seconds")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    parser.add_argument("--keep", type=Path, help="a directory for logs; by default a temporary one")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    # So that workers and servers are ended, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    part = "locks" if chosen.peers or chosen.only or chosen.faults else chosen.part
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        directory = chosen.keep or Path(temporary)
        parts = {"locks": run_locks, "messages": run_messages}
        failed: list[int] = []
        jobs = [
            lambda run=run: failed.append(run(chosen, directory))
            for name, run in parts.items()
            if part in (name, "both")
        ]
        if chosen.short:
            together(jobs)  # what they do most is wait
        else:
            for job in jobs:
                job()
        return max(failed)


def run_messages(chosen: argparse.Namespace, directory: Path) -> int:
    names = SHORT_LANES if chosen.short else tuple(LANES)
    if os.environ.get("CI") and any(why_left_out(name) for name in names):
        print("In CI nothing is left out:", *filter(None, map(why_left_out, names)), file=sys.stderr)
        return 1
    number = chosen.seeds or (1 if chosen.short else 20)
    seeds = list(range(chosen.first_seed, chosen.first_seed + number))
    return 1 if of_messages.run(list(names), directory, seeds, 4 if chosen.short else 8, drain=not chosen.short) else 0


def run_locks(chosen: argparse.Namespace, directory: Path) -> int:
    names = chosen.faults.split(",") if chosen.faults else SHORT if chosen.short else [fault.name for fault in FAULTS]
    faults = [fault for fault in FAULTS if fault.name in names]
    no_network = why_none() if any(fault.in_network for fault in faults) else None
    if no_network is not None:
        skipped = ", ".join(fault.name for fault in faults if fault.in_network)
        print(f"left out: {skipped}: {no_network}", flush=True)
        if os.environ.get("CI"):
            print("In CI nothing is left out.", file=sys.stderr)
            return 1
        stand_in = "partition" if chosen.short else ""
        faults = [fault for fault in FAULTS if (fault in faults and not fault.in_network) or fault.name == stand_in]
    number = chosen.seeds or (2 if chosen.short else 20)
    seeds = list(range(chosen.first_seed, chosen.first_seed + number))
    contenders = [OURS, *PEERS] if chosen.peers or chosen.only else [OURS]
    if chosen.only:
        contenders = [one for one in contenders if one.app in chosen.only.split(",")]
    results: dict[str, dict[str, Counts]] = {}
    versions: dict[str, str] = {}
    for contender in contenders:
        versions[contender.name] = contender.versions()
        results[contender.name] = run(contender, faults, seeds, directory, chosen)
        if chosen.json:
            write_json(chosen.json, chosen, seeds, versions, results)
    print()
    print(table(results, faults))
    print()
    lanes = f"{chosen.lanes} lanes, TTL {chosen.ttl} s, seeds {seeds[0]} to {seeds[-1]} for each fault"
    print(f"{lanes}; Python {platform.python_version()}, {platform.system()} {platform.release()}")
    for name, version in versions.items():
        print(f"{name}: {version}")
    return verdict(results.get(OURS.name, {}))


def run(
    contender: Contender, faults: list[Fault], seeds: list[int], directory: Path, chosen: argparse.Namespace
) -> dict[str, Counts]:
    counts: dict[str, Counts] = {}
    networked = [fault for fault in faults if fault.in_network and contender.store == "etcd"]
    others = [fault for fault in faults if not fault.in_network]
    if others:
        store = EtcdStore() if contender.store == "etcd" else RedisStore()
        counts |= run_on(store, start_broker(), contender, contender.app, others, seeds, directory, chosen)
    if networked:
        network = Network()
        broker = start_broker(network.outside)
        name = f"{contender.app}-network"
        counts |= run_on(NetworkedEtcdStore(network), broker, contender, name, networked, seeds, directory, chosen)
    return counts


def run_on(
    store: Any,
    broker: RedisServer,
    contender: Contender,
    name: str,
    faults: list[Fault],
    seeds: list[int],
    directory: Path,
    chosen: argparse.Namespace,
) -> dict[str, Counts]:
    counts: dict[str, Counts] = {}
    lanes = min(chosen.lanes, len(seeds))
    runs = Runs(contender, store, broker.url, directory, name=name, lanes=lanes, ttl_seconds=chosen.ttl)
    try:
        runs.start()
        for fault in faults:
            if fault.needs_etcd and contender.store != "etcd":
                continue
            started = time.monotonic()
            # As many on each lane, for some faults hit all lanes at once.
            counts[fault.name] = runs.run(fault, seeds[: len(seeds) // lanes * lanes])
            text = cell(counts[fault.name])
            print(f"{contender.name:22} {fault.name:22} {text}  ({time.monotonic() - started:.0f} s)", flush=True)
    finally:
        runs.stop()
        store.stop()
        broker.stop()
    return counts


def cell(counts: Counts) -> str:
    overlaps = str(counts.overlaps)
    if counts.overlaps_while_stopped:
        overlaps += f"+{counts.overlaps_while_stopped}s"
    text = f"{overlaps} / {counts.stale_tried} / {counts.stale_accepted} / {counts.lost} / {counts.twice}"
    missing = counts.seeds - len(counts.recoveries)
    if counts.recoveries:
        text += f"; {statistics.median(counts.recoveries):.1f}, {max(counts.recoveries):.1f} s"
    return text + (f"; {missing} never" if missing else "")


def table(results: dict[str, dict[str, Counts]], faults: list[Fault]) -> str:
    lines = ["| fault | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for fault in faults:
        cells = [cell(counts[fault.name]) if fault.name in counts else "-" for counts in results.values()]
        lines.append(f"| {fault.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(
    path: Path,
    chosen: argparse.Namespace,
    seeds: list[int],
    versions: dict[str, str],
    results: dict[str, dict[str, Counts]],
) -> None:
    counts = {name: {fault: vars(one) for fault, one in faults.items()} for name, faults in results.items()}
    path.write_text(json.dumps({"ttl": chosen.ttl, "seeds": seeds, "versions": versions, "counts": counts}, indent=1))


def verdict(counts: dict[str, Counts]) -> int:
    wrong = [
        f"{fault}: {cell(one)}"
        for fault, one in counts.items()
        if one.stale_accepted or one.lost or one.twice or (one.overlaps and fault not in OUTSIDE)
    ]
    for line in wrong:
        print("WRONG", line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
