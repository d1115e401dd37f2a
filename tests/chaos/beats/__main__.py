"""``make chaos-beats``: real beats, a real etcd of three members, a real broker, faults, and what became of each tick.

    python -m tests.chaos.beats                  # ours: all faults, 4 seeds each
    python -m tests.chaos.beats --short          # some faults, one seed each, all at once: for CI
    python -m tests.chaos.beats --peers          # celery-redbeat and two plain beats too

Exits with 1 when a tick of ours was lost or sent twice, and prints all that arrived in that run.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.chaos.beats.faults import FAULTS, Fault, Run
from tests.chaos.beats.lane import SCHEDULERS, Lane
from tests.chaos.beats.ledger import Account
from tests.chaos.stores import EtcdStore
from tests.rabbitmq_server import RabbitServer, rabbitmq_binary
from tests.redis_server import RedisServer, redis_binary

OURS, *PEERS = SCHEDULERS
SHORT = ("SIGKILL", "SIGSTOP", "store cut off", "broker away for 10 s")


class SharedStore(EtcdStore):
    """One etcd for all lanes: whoever strikes first kills its leader, whoever heals last brings it back."""

    def __init__(self) -> None:
        super().__init__()
        self._mutex = threading.Lock()
        self._struck = 0

    def kill_leader_once(self) -> None:
        with self._mutex:
            self._struck += 1
            if self._struck == 1:
                self.kill_leader()

    def heal_once(self) -> None:
        with self._mutex:
            self._struck -= 1
            if self._struck == 0:
                self.heal()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.beats", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="seeds for each fault")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=4, help="how many runs go on at once")
    parser.add_argument("--faults", help="comma-separated: " + ", ".join(fault.name for fault in FAULTS))
    parser.add_argument("--only", help="contenders, separated by semicolons: " + "; ".join(SCHEDULERS))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--short", action="store_true", help="a few faults, one seed each, side by side")
    parser.add_argument("--keep", type=Path, help="a directory for logs; by default a temporary one")
    parser.add_argument("--json", type=Path, help="where to add the accounts")
    return parser.parse_args()


class Servers:
    """A broker, the etcd and a Redis for redbeat's own."""

    def __init__(self, broker: str, contenders: list[str]) -> None:
        binary = redis_binary()
        if binary is None:
            raise SystemExit("redis-server is missing")
        self.redis = RedisServer(binary).start()
        self.etcd = SharedStore() if OURS in contenders else None
        self.rabbitmq: RabbitServer | None = None
        if broker == "rabbitmq":
            rabbit = rabbitmq_binary()
            if rabbit is None:
                raise SystemExit("RabbitMQ is missing")
            self.rabbitmq = RabbitServer(rabbit).start()

    def new_lane(self, name: str, contender: str, directory: Path) -> Lane:
        etcd_ports = [] if self.etcd is None else [int(one.rpartition(":")[2]) for one in self.etcd.endpoints]
        stores = {OURS: etcd_ports, "celery-redbeat": [self.redis.port]}
        if self.rabbitmq is not None:
            url, port = "amqp://guest:guest@127.0.0.1:{port}//", self.rabbitmq.port
        else:
            url, port = "redis://127.0.0.1:{port}/1", self.redis.port
        return Lane(
            name,
            contender,
            store_ports=stores.get(contender, []),
            broker_url=url,
            broker_port=port,
            directory=directory,
        )

    def stop(self) -> None:
        for server in (self.rabbitmq, self.etcd, self.redis):
            if server is not None:
                server.stop()


def main() -> int:
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = chosen.faults.split(",") if chosen.faults else SHORT if chosen.short else [one.name for one in FAULTS]
    faults = [fault for fault in FAULTS if fault.name in names]
    contenders = chosen.only.split(";") if chosen.only else [OURS, *PEERS] if chosen.peers else [OURS]
    seeds = [chosen.first_seed] if chosen.short else list(range(chosen.first_seed, chosen.first_seed + chosen.seeds))
    jobs = [
        (contender, fault, seed)
        for contender in contenders
        for fault in faults
        for seed in seeds
        if not (fault.needs_etcd and contender != OURS)
        and not (fault.needs_store and contender not in (OURS, PEERS[0]))
    ]
    accounts: dict[tuple[str, str], Account] = {}
    servers = Servers(chosen.broker, contenders)
    with tempfile.TemporaryDirectory(prefix="beats-") as temporary:
        directory = chosen.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        try:
            with ThreadPoolExecutor(chosen.lanes) as pool:
                for contender, fault, _ in jobs:
                    accounts.setdefault((contender, fault.name), Account())
                # Faults that hit all lanes at once mustn't meet others: fault by fault.
                groups = (
                    [jobs]
                    if chosen.short
                    else [[j for j in jobs if j[:2] == key] for key in dict.fromkeys(j[:2] for j in jobs)]
                )
                for group in groups:
                    started = time.monotonic()
                    for job, account in zip(group, pool.map(lambda j: one(servers, j, directory), group), strict=True):
                        accounts[job[0], job[1].name].add(account)
                        print(f"{job[0]:20} {job[1].name:22} seed {job[2]:<3} {account}", flush=True)
                    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
        finally:
            servers.stop()
    report(accounts, contenders, faults, chosen, seeds)
    wrong = [f"{fault}: {one}" for (name, fault), one in accounts.items() if name == OURS and (one.lost or one.twice)]
    for line in wrong:
        print("WRONG", line, file=sys.stderr)
    return 1 if wrong else 0


def one(servers: Servers, job: tuple[str, Fault, int], directory: Path) -> Account:
    contender, fault, seed = job
    name = f"{contender.split()[0]}-{len(contender)}-{fault.name.replace(' ', '-')}-{seed}"
    lane = servers.new_lane(name, contender, directory)
    try:
        run = Run(lane, seed, servers.etcd)
        account = run.run(fault)
        if contender == OURS and (account.lost or account.twice):
            print(f"WRONG {fault.name}, seed {seed}: {account}\n{run.schedule()}", file=sys.stderr)
        return account
    finally:
        lane.close()


def report(
    accounts: dict[tuple[str, str], Account],
    contenders: list[str],
    faults: list[Fault],
    chosen: argparse.Namespace,
    seeds: list[int],
) -> None:
    print("\nsent once / late / again under its id / twice / lost")
    print("| fault | " + " | ".join(contenders) + " |")
    print("|---" * (len(contenders) + 1) + "|")
    for fault in faults:
        cells = [str(accounts.get((contender, fault.name), "-")) for contender in contenders]
        print(f"| {fault.name} | " + " | ".join(cells) + " |")
    print(f"\nbroker {chosen.broker}, TTL 3 s, seeds {seeds[0]} to {seeds[-1]}, {chosen.lanes} lanes; ", end="")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}; ", end="")
    for package in ("celery", "celery-redbeat"):
        try:
            print(f"{package} {version(package)}", end=" ")
        except PackageNotFoundError:
            print(f"{package}: not installed", end=" ")
    print(flush=True)
    if chosen.json:
        with chosen.json.open("a") as file:
            for (contender, fault_name), account in accounts.items():
                file.write(json.dumps([contender, fault_name, chosen.broker, len(seeds), vars(account)]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
