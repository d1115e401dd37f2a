"""A proxy before etcd that loses the replies to one request, by what the request says, and to all others meanwhile.

The frames that carry a transaction are plain bytes: the lock's name and the record in it are there to be seen.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.fault_proxy import PIECE_BYTES, FaultProxy

__all__ = ["LossyProxy", "Rule"]

#: Between two losses: a holder must be able to renew.
PAUSE_SECONDS = 4.0

_KIND = b'"kind":"%s"'
#: What the request contains, and what it doesn't.
REQUESTS: dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {
    "claim": ((b'"kind":"',), (_KIND % b"held",)),
    "position": ((_KIND % b"position",), ()),
    "acquire": ((_KIND % b"held",), ()),
    "release": ((b"/done/",), (b'"kind":',)),
    "handover": ((_KIND % b"handover",), ()),
}


@dataclass
class Rule:
    """Loses for ``seconds`` from the first request of a kind that is about the lock ``name``; then tells ``struck``."""

    name: str
    what: str
    seconds: float
    struck: Callable[[], None]

    def matches(self, piece: bytes) -> bool:
        wanted, unwanted = REQUESTS[self.what]
        return (
            self.name.encode() in piece
            and all(text in piece for text in wanted)
            and not any(text in piece for text in unwanted)
        )


class LossyProxy(FaultProxy):
    def __init__(self, server_port: int) -> None:
        self._rules: list[Rule] = []
        self._rules_mutex = threading.Lock()
        self._quiet_until = 0.0
        super().__init__(server_port)

    def arm(self, rule: Rule) -> None:
        with self._rules_mutex:
            self._rules.append(rule)

    def disarm(self, name: str) -> None:
        with self._rules_mutex:
            self._rules = [rule for rule in self._rules if rule.name != name]

    def _forward(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        try:
            while piece := source.recv(PIECE_BYTES):
                if not replies:
                    self._look_at(piece)
                elif self.swallow_replies:
                    continue
                target.sendall(piece)
        except OSError:
            pass
        finally:
            for one in (source, target):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _look_at(self, piece: bytes) -> None:
        with self._rules_mutex:
            if not self._rules or time.monotonic() < self._quiet_until:
                return
            rule = next((rule for rule in self._rules if rule.matches(piece)), None)
            if rule is None:
                return
            self._rules.remove(rule)
            self._quiet_until = time.monotonic() + rule.seconds + PAUSE_SECONDS
            self.swallow_replies = True
        rule.struck()
        timer = threading.Timer(rule.seconds, self.heal)
        timer.daemon = True
        timer.start()
