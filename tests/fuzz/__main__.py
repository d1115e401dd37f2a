"""Fuzz the reading of what a server says: ``python -m tests.fuzz [SECONDS]``, two minutes unless told otherwise.

With atheris (``pip install atheris``) the inputs are led by what code they reach; without it they are random mutations
of recorded conversations, and it says so. An input that shows a fault, or takes longer than ten seconds, is printed and
kept in ``.fuzz/``.
"""

from __future__ import annotations

import importlib.util
import random
import signal
import sys
import time
import traceback
from pathlib import Path

KEPT = Path(".fuzz")
LONGEST_SECONDS = 10


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    KEPT.mkdir(exist_ok=True)
    if importlib.util.find_spec("atheris"):
        led(int(seconds))
        return 0
    print("atheris isn't installed (pip install atheris): random mutations instead", flush=True)
    return at_random(seconds)


def led(seconds: int) -> None:
    """By atheris, which ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["celery_etcdlock.etcd", "hpack"]):
        from tests.fuzz import server_says
    corpus = KEPT / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(server_says.SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={LONGEST_SECONDS}",
        "-max_len=4096",
        f"-artifact_prefix={KEPT}/",
    ]

    def one(data: bytes) -> None:
        server_says.play(data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def at_random(seconds: float) -> int:
    from tests.fuzz import server_says

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    ends_at, tried, accepted = time.monotonic() + seconds, 0, 0
    signal.signal(signal.SIGALRM, hangs)
    while time.monotonic() < ends_at:
        signal.alarm(LONGEST_SECONDS)
        data = server_says.mutated(chance.choice(server_says.SEEDS), chance)
        try:
            accepted += server_says.play(data)
        except Exception:
            traceback.print_exc()
            (KEPT / "fault").write_bytes(data)
            print(f"seed {seed}: this input shows a fault, and is in {KEPT}/fault: {data!r}")
            return 1
        tried += 1
    signal.alarm(0)
    print(f"seed {seed}: {tried} random inputs, {accepted} of them with a reply, no fault; atheris would lead them")
    return 0


def hangs(*_: object) -> None:
    raise RuntimeError(f"an input takes longer than {LONGEST_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
