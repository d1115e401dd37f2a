"""The headers of our requests, as bytes that are made once: but for the time-out and the token they never change."""

from __future__ import annotations

import math
from functools import lru_cache

from celery_etcdlock.etcd.header_blocks import header_block

SERVER_WAITS_LONGER_SECONDS = 1.0


def request_headers(scheme: str, authority: str, path: str, timeout_seconds: float, token: str) -> bytes:
    # Later than ours: a server that is first ends a watch with a reset (etcd 3.6), as if the connection had failed.
    # Rounded up, so that the headers of most calls are the same.
    return _made(scheme, authority, path, math.ceil((timeout_seconds + SERVER_WAITS_LONGER_SECONDS) * 10), token)


@lru_cache(maxsize=64)
def _made(scheme: str, authority: str, path: str, tenths: int, token: str) -> bytes:
    fields = [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"celery-etcdlock"),
        (b"hasleader", b"true"),  # fail at once at a member that is cut off from its leader
        (b"grpc-timeout", b"%dm" % (tenths * 100) if tenths < 10**6 else b"%dS" % min(10**8 - 1, tenths // 10)),
    ]
    if token:
        fields.append((b"token", token.encode()))
    return header_block(fields, secret=b"token")
