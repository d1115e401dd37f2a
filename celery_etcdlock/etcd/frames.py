"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6): their numbers, how ours are written, what a peer may not write.

A frame is nine bytes, length (24 bits), type, flags and stream, and a payload. ``Http2Error`` is whatever the RFC calls
a connection error: the peer has broken a rule, nobody can know what it meant, and the connection is over.
"""

from __future__ import annotations

from struct import Struct

from celery_etcdlock.etcd.errors import NotEtcd

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
# Flags (6.1, 6.2, 6.5, 6.7).
END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
WITH_PRIORITY = 0x20
# Settings (6.5.2) that we send or obey.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 5, 6
# Error codes (7) that we name or act upon.
_ERRORS = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
    "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
)
ERRORS = _ERRORS.split()
REFUSED_STREAM, CANCEL = 7, 8

CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # 3.4
LEAST_FRAME_SIZE, LARGEST_FRAME_SIZE = 1 << 14, (1 << 24) - 1  # 4.2; we never allow a peer more than the least
#: Of the frames that carry no reply: which sizes they may have, and whether they are a stream's, where it isn't either.
SHAPES = {
    PRIORITY: (range(5, 6), True),
    RST_STREAM: (range(4, 5), True),
    SETTINGS: (range(0, LEAST_FRAME_SIZE, 6), False),
    PING: (range(8, 9), False),
    GOAWAY: (range(8, LEAST_FRAME_SIZE + 1), False),
    WINDOW_UPDATE: (range(4, 5), None),
}
ANY_SHAPE = (range(LEAST_FRAME_SIZE + 1), None)
HEADER_BYTES = 9
HEADER = Struct(">HBBBI")  # the length in two parts
SETTING = Struct(">HI")
NUMBER = Struct(">I")
LOW_31_BITS = 0x7FFFFFFF


class Http2Error(Exception):
    """The peer broke HTTP/2: a name of section 7, and what it did."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{what} ({name})")


def error_name(code: int) -> str:
    return ERRORS[code] if code < len(ERRORS) else f"error {code}"


def frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    length = len(payload)
    return HEADER.pack(length >> 8, length & 255, kind, flags, stream_id) + payload


def header_frames(stream_id: int, block: bytes) -> bytes:
    """HEADERS, and CONTINUATION for what a frame can't hold (6.10): a login token may be long."""
    if len(block) <= LEAST_FRAME_SIZE:
        return frame(HEADERS, END_HEADERS, stream_id, block)
    parts = [block[start : start + LEAST_FRAME_SIZE] for start in range(0, len(block), LEAST_FRAME_SIZE)]
    *others, last = (frame(CONTINUATION if i else HEADERS, 0, stream_id, part) for i, part in enumerate(parts))
    return b"".join((*others, last[:4] + bytes([END_HEADERS]) + last[5:]))


def unpadded(payload: bytes) -> bytes:
    """The payload of a frame with PADDED without its padding (6.1)."""
    padding = payload[0] if payload else 0
    if padding >= len(payload):
        raise Http2Error("PROTOCOL_ERROR", "a frame with more padding than payload")
    return payload[1 : len(payload) - padding]


def check_shape(kind: int, stream_id: int, length: int) -> None:
    sizes, of_stream = SHAPES.get(kind, ANY_SHAPE)
    if length not in sizes:
        raise Http2Error("FRAME_SIZE_ERROR", f"a frame of type {kind} with {length} bytes")
    if of_stream is not None and of_stream != (stream_id > 0):
        raise Http2Error("PROTOCOL_ERROR", f"a frame of type {kind} on stream {stream_id}")


def check_greeting(data: bytes, endpoint: str) -> None:
    """Raise NotEtcd when what a server says first isn't HTTP/2, whose first frame is SETTINGS (3.4)."""
    is_http1 = data[:5] == b"HTTP/"
    if (data[:1] == b"\x15" and data[1:2] in (b"\x03", b"")) or (is_http1 and b"HTTPS" in data):
        wants = "the server wants TLS: write https:// in etcdlock_endpoints, or set etcdlock_ca_cert"
        raise NotEtcd(wants, endpoint=endpoint, permanent=True)
    if is_http1:
        line = data[:100].splitlines()[0].decode("ascii", "replace")
        raise not_http2(endpoint, f"speaks HTTP/1 ({line})" + (", or wants TLS (https://)" if " 400 " in line else ""))
    if len(data) >= HEADER_BYTES and data[3] not in (SETTINGS, GOAWAY):
        raise not_http2(endpoint, "doesn't speak HTTP/2")


def not_http2(endpoint: str, what: str) -> NotEtcd:
    return NotEtcd(f"the server {what}: is this etcd's client port?", endpoint=endpoint, permanent=True)
