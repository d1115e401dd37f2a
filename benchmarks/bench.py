"""What a measurement is given: the scale to run at, a scratch directory, and a way to say how far it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """``scratch`` is removed at the end; it lies on the disk whose syncs etcd waits for."""

    name: str
    quick: bool
    scratch: Path

    def say(self, line: str) -> None:
        """Progress goes to standard error, so that standard output is the tables alone."""
        print(f"[{self.name}] {line}", file=sys.stderr, flush=True)

    def scaled(self, *, full: int, quick: int) -> int:
        return quick if self.quick else full
