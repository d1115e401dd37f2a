"""What a server says on one stream, read as gRPC: messages with a five-byte prefix, then a status."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from .errors import EtcdError, NotEtcd, StatusCode, status_error

__all__ = ["PREFIX_BYTES", "Reply", "framed"]

PREFIX_BYTES = 5
LARGEST_MESSAGE_BYTES = 256 * 1024 * 1024

# What gRPC makes of a proxy's HTTP status. Those that are missing mean that this isn't a gRPC server at all.
_HTTP_STATUS = {
    b"401": StatusCode.UNAUTHENTICATED,
    b"403": StatusCode.PERMISSION_DENIED,
    b"429": StatusCode.UNAVAILABLE,
    b"500": StatusCode.UNKNOWN,
    b"502": StatusCode.UNAVAILABLE,
    b"503": StatusCode.UNAVAILABLE,
    b"504": StatusCode.UNAVAILABLE,
}


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, length, bytes."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


class Reply:
    """The reply being received."""

    __slots__ = ("_body", "_details", "_endpoint", "_http_status", "_type", "_verdict", "ended", "reset_code")

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._body = bytearray()
        self._http_status = b""
        self._type = b""
        self._verdict: bytes | None = None
        self._details = b""
        self.ended = False
        self.reset_code: int | None = None

    def add_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Headers, trailers, or both at once ("trailers only")."""
        for name, value in headers:
            if name == b"grpc-status":
                self._verdict = value
            elif name == b"grpc-message":
                self._details = value
            elif name == b":status":
                self._http_status = value
            elif name == b"content-type":
                self._type = value

    def add_data(self, data: bytes) -> None:
        self._body += data

    def next_message(self) -> bytes | None:
        """Take the next whole message; None when there is none yet."""
        body = self._body
        if len(body) < PREFIX_BYTES or self._http_status != b"200":
            return None
        if body[0]:
            raise self._malformed("sent a compressed message, which nobody asked for")
        size = int.from_bytes(body[1:PREFIX_BYTES], "big")
        if size > LARGEST_MESSAGE_BYTES:
            raise self._malformed(f"announced a message of {size} bytes")
        end = PREFIX_BYTES + size
        if len(body) < end:
            return None
        message = bytes(body[PREFIX_BYTES:end])
        del body[:end]
        return message

    def check_status(self) -> None:
        """After the end: raise the error that the server reported, if it did."""
        if self._verdict == b"0":
            return
        if self._verdict is not None:
            details = unquote_to_bytes(self._details).decode("utf-8", "replace")
            code = int(self._verdict) if self._verdict.isdigit() else StatusCode.UNKNOWN
            raise status_error(code, details, self._endpoint)
        if self._http_status in _HTTP_STATUS:
            code = _HTTP_STATUS[self._http_status]
            raise status_error(code, f"HTTP status {self._http_status.decode()}", self._endpoint)
        if self._http_status != b"200" or not self._type.startswith(b"application/grpc"):
            raise NotEtcd(
                f"{self._endpoint}: an HTTP/2 server that isn't etcd answered with HTTP status "
                f"{self._http_status.decode('ascii', 'replace') or 'none'}: is this etcd's client port?",
                endpoint=self._endpoint,
                permanent=True,
            )
        raise self._malformed("ended the call without a status")

    def only_message(self) -> bytes:
        """The message of a unary call that has ended; raises the status it ended with."""
        self.check_status()
        message = self.next_message()
        if message is None:
            raise self._malformed("answered OK without a message")
        return message

    def _malformed(self, what: str) -> EtcdError:
        return EtcdError(f"{self._endpoint}: the server {what}", endpoint=self._endpoint, maybe_applied=True)
