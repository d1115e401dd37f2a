"""Where things are: the repository, the tools it builds, a free port."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["ROOT", "TOOLS", "environment", "free_port"]

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would change etcd or Celery, for a process run in ``ROOT``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "CELERY", "PYTHONPATH"))}
    return kept | {"PYTHONPATH": str(ROOT)} | extra
