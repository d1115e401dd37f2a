"""The headers of our requests, as bytes that are made once: but for the time-out and the token they never change."""

from __future__ import annotations

import math

from celery_etcdlock.etcd.header_blocks import header_block

MOST_KEPT = 64
SERVER_WAITS_LONGER_SECONDS = 1.0


class RequestHeaders:
    """Header blocks by what is in them."""

    def __init__(self, *, tls: bool) -> None:
        self._scheme = b"https" if tls else b"http"
        self._blocks: dict[tuple[str, str, int, str], bytes] = {}

    def block(self, authority: str, path: str, timeout_seconds: float, token: str) -> bytes:
        # Later than ours: a server that is first ends a watch with a reset (etcd 3.6), as if the connection had failed.
        # Rounded up, so that the headers of most calls are the same.
        tenths = math.ceil((timeout_seconds + SERVER_WAITS_LONGER_SECONDS) * 10)
        wanted = (authority, path, tenths, token)
        block = self._blocks.get(wanted)
        if block is None:
            unit = b"%dm" % (tenths * 100) if tenths < 10**6 else b"%dS" % min(10**8 - 1, tenths // 10)
            fields = [
                (b":method", b"POST"),
                (b":scheme", self._scheme),
                (b":path", path.encode()),
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"celery-etcdlock"),
                (b"hasleader", b"true"),  # fail at once at a member that is cut off from its leader
                (b"grpc-timeout", unit),
            ]
            if token:
                fields.append((b"token", token.encode()))
            if len(self._blocks) >= MOST_KEPT:
                self._blocks.clear()
            block = self._blocks[wanted] = header_block(fields, secret=b"token")
        return block
