"""Where and with what a run was made, and how busy the machine is with other things."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT
from benchmarks.servers import etcd_version

__all__ = ["Usage", "busy_percent", "describe"]

PACKAGES = ("celery", "kombu", "redis", "hpack", "protobuf")


def describe() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "etcd": etcd_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


class Usage:
    """How busy the machine is from now on, with this benchmark's own work included."""

    def __init__(self) -> None:
        self._before = _ticks()

    def percent(self) -> float | None:
        """``None`` where the system doesn't tell (only Linux does)."""
        after = _ticks()
        if self._before is None or after is None or after[0] == self._before[0]:
            return None
        return round(100 * (1 - (after[1] - self._before[1]) / (after[0] - self._before[0])), 1)


def busy_percent(seconds: float = 1.0) -> float | None:
    """How much of all cores others use now."""
    usage = Usage()
    time.sleep(seconds)
    return usage.percent()


def _ticks() -> tuple[int, int] | None:
    """All ticks and idle ones."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    return sum(fields), fields[3] + fields[4]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
