"""What arrives on a connection, cut into whole frames; h2 gets all but PING and GOAWAY.

GOAWAY frames are taken out before h2 sees the rest: h2 refuses every frame after one, but a server that shuts down
politely first finishes the calls that it has begun. PINGs are too, for speed: etcd sends one on most calls.
"""

from __future__ import annotations

from h2.exceptions import H2Error

from .errors import NotEtcd

__all__ = ["FrameSieve", "not_http2"]

LARGEST_FRAME_BYTES = 16384  # HTTP/2's default, which we don't raise
FRAME_HEADER_BYTES = 9
SETTINGS_FRAME = 4
PING_FRAME = 6
GOAWAY_FRAME = 7
ACKNOWLEDGED = 1
PONG_HEADER = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00"


class FrameSieve:
    """See the module. ``last_processed`` is the last stream that a GOAWAY promised to look at, if one came."""

    def __init__(self, endpoint: str) -> None:
        self.last_processed: int | None = None
        self.goaway_reason = ""
        self._endpoint = endpoint
        self._partial = b""
        self._pongs = b""

    def take_pongs(self) -> bytes:
        """The answers that we owe to PINGs, as bytes to send."""
        pongs, self._pongs = self._pongs, b""
        return pongs

    def sift(self, data: bytes) -> list[bytes]:
        """The runs of whole frames that are for h2, in order; the rest of ``data`` waits for more."""
        if self._partial:
            data = self._partial + data
        start = position = 0
        size = len(data)
        runs: list[bytes] = []
        while size - position >= FRAME_HEADER_BYTES:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            if length > LARGEST_FRAME_BYTES:
                raise H2Error(f"a frame of {length} bytes")
            end = position + FRAME_HEADER_BYTES + length
            if end > size:
                break
            kind = data[position + 3]
            if kind in (PING_FRAME, GOAWAY_FRAME):
                if position > start:
                    runs.append(data[start:position])
                payload = data[position + FRAME_HEADER_BYTES : end]
                if kind == GOAWAY_FRAME:
                    self._going_away(payload)
                elif data[position + 4] & ACKNOWLEDGED == 0:
                    self._pongs += PONG_HEADER + payload
                start = end
            position = end
        self._partial = data[position:]
        if position > start:
            runs.append(data[start:position])
        return runs

    def check_first_bytes(self, data: bytes) -> None:
        """Raise NotEtcd when what a server says first isn't HTTP/2."""
        data = self._partial + data
        if data[:5] == b"HTTP/":
            raise not_http2(self._endpoint, "speaks HTTP/1")
        if data[:1] == b"\x15" and data[1:2] in (b"\x03", b""):
            raise NotEtcd(
                f"{self._endpoint}: the server wants TLS: write https:// in etcdlock_endpoints, "
                "or set etcdlock_ca_cert",
                endpoint=self._endpoint,
                permanent=True,
            )
        if len(data) >= FRAME_HEADER_BYTES and data[3] not in (SETTINGS_FRAME, GOAWAY_FRAME):
            raise not_http2(self._endpoint, "doesn't speak HTTP/2")

    def _going_away(self, payload: bytes) -> None:
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        self.last_processed = last if self.last_processed is None else min(last, self.last_processed)
        self.goaway_reason = payload[8:].decode("utf-8", "replace")[:200] or "GOAWAY"


def not_http2(endpoint: str, what: str) -> NotEtcd:
    return NotEtcd(f"{endpoint}: the server {what}: is this etcd's client port?", endpoint=endpoint, permanent=True)
