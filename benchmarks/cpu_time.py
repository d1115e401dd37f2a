"""CPU time and memory of other processes, from Linux's /proc: they hardly depend on what else the machine does."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["children_of", "cpu_seconds", "resident_mebibytes"]


def children_of(pid: int) -> list[int]:
    """Empty where the system doesn't tell."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(stat)
        if fields and int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def cpu_seconds(*pids: int) -> float | None:
    """User and system time together; ``None`` where the system doesn't tell, or a process has ended."""
    every = [_fields(Path(f"/proc/{pid}/stat")) for pid in pids]
    if not every or not all(every):
        return None
    return sum(int(fields[11]) + int(fields[12]) for fields in every) / os.sysconf("SC_CLK_TCK")


def resident_mebibytes(pid: int) -> float | None:
    """Memory of a process; ``None`` where the system doesn't tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _fields(stat: Path) -> list[str]:
    """From the third on, the process's state: its name before may hold spaces."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []
