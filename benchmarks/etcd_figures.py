"""What an etcd tells of itself on ``/metrics``."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict

__all__ = ["etcd_figures", "fetch", "fsync_milliseconds", "requests_handled"]

LINE = re.compile(r"^([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
METHOD = re.compile(r'grpc_method="(\w+)"')


def etcd_figures(endpoint: str) -> dict[str, float]:
    """Each figure by its name, summed over its labels."""
    figures: dict[str, float] = defaultdict(float)
    for name, _, value in _lines(endpoint):
        figures[name] += float(value)
    return figures


def requests_handled(endpoint: str) -> dict[str, float]:
    """How many messages etcd has received so far, by the method of its API; streams count each message."""
    received: dict[str, float] = defaultdict(float)
    for name, labels, value in _lines(endpoint):
        method = METHOD.search(labels)
        if name == "grpc_server_msg_received_total" and method is not None:
            received[method[1]] += float(value)
    return received


def fsync_milliseconds(endpoint: str) -> float | None:
    """The mean time of a sync of etcd's write-ahead log since it started: what a commit can't be faster than."""
    figures = etcd_figures(endpoint)
    count = figures["etcd_disk_wal_fsync_duration_seconds_count"]
    return figures["etcd_disk_wal_fsync_duration_seconds_sum"] / count * 1e3 if count else None


def fetch(url: str) -> bytes:
    """Nothing where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return b""


def _lines(endpoint: str) -> list[tuple[str, str, str]]:
    return LINE.findall(fetch(f"http://{endpoint}/metrics").decode())
