"""What happened in a lane, as it was written down, read again and again while it grows."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["Event", "EventLog"]

Event = dict[str, Any]


class EventLog:
    """The events of a lane by the id of their task, in order of time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._mutex = threading.Lock()
        self._by_id: dict[str, list[Event]] = defaultdict(list)
        #: When something of ours warned of etcd, or of a lock.
        self.troubles: list[float] = []

    def read(self) -> None:
        with self._mutex:
            if not self._path.exists():
                return
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
            whole, _, _ = text.rpartition(b"\n")
            if not whole:
                return
            self._offset += len(whole) + 1
            for line in whole.splitlines():
                event = json.loads(line)
                if "id" in event:
                    self._by_id[event["id"]].append(event)
                elif event["event"] == "trouble" and "another broker" not in event["text"]:
                    self.troubles.append(event["at"])

    def of(self, task_id: str) -> list[Event]:
        with self._mutex:
            return sorted(self._by_id[task_id], key=lambda event: event["at"])
