"""What a server says on one stream, read as gRPC: messages with a five-byte prefix, then a status."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from celery_etcdlock.etcd.errors import EtcdError, NotEtcd, StatusCode, status_error
from celery_etcdlock.etcd.header_blocks import Fields

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

    __slots__ = ("_body", "_details", "_endpoint", "_http_status", "_type", "_verdict", "begun", "ended", "reset_code")

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._body = bytearray()
        self._http_status = b""
        self._type = b""
        self._verdict = b""
        self._details = b""
        self.begun = False
        self.ended = False
        self.reset_code: int | None = None

    def add_headers(self, fields: Fields, last: bool) -> None:
        """Headers, or trailers, or both at once ("trailers only"). A status counts in the ``last`` ones alone."""
        if not self.begun:
            self.begun = True
            self._http_status, self._type = fields.http_status, fields.content_type
        if last:
            self.ended = True
            self._verdict, self._details = fields.grpc_status, fields.grpc_message

    def add_data(self, data: bytes) -> None:
        if self._is_grpc:  # what else a server may say, pages of HTML for one, isn't kept
            self._body += data
            if len(self._body) > PREFIX_BYTES + LARGEST_MESSAGE_BYTES:
                raise self._malformed(f"sent more than {LARGEST_MESSAGE_BYTES} bytes")

    @property
    def _is_grpc(self) -> bool:
        return self._http_status == b"200" and self._type.startswith(b"application/grpc")

    def next_message(self) -> bytes | None:
        """Take the next whole message; None when there is none yet."""
        body = self._body
        if len(body) < PREFIX_BYTES:
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
        if self._verdict:
            details = unquote_to_bytes(self._details).decode("utf-8", "replace")
            digits = self._verdict.isdigit() and len(self._verdict) < 5
            code = int(self._verdict) if digits else StatusCode.UNKNOWN
            raise status_error(code, details, self._endpoint)
        if self._http_status in _HTTP_STATUS:
            code = _HTTP_STATUS[self._http_status]
            raise status_error(code, f"HTTP status {self._http_status.decode()}", self._endpoint)
        if not self._is_grpc:
            shown = self._http_status.decode("ascii", "replace") or "none"
            text = f"an HTTP/2 server that isn't etcd answered with HTTP status {shown}: is this etcd's client port?"
            raise NotEtcd(text, endpoint=self._endpoint, permanent=True)
        raise self._malformed("ended the call without a status: does a proxy before it drop HTTP/2 trailers?")

    def only_message(self) -> bytes:
        """The message of a unary call that has ended; raises the status it ended with."""
        self.check_status()
        message = self.next_message()
        if message is None:
            raise self._malformed("answered OK without a whole message")
        self.check_rest()
        return message

    def check_rest(self) -> None:
        """After the last message: raise if there is more, or half of one."""
        if self._body:
            raise self._malformed("sent more than whole messages")

    def _malformed(self, what: str) -> EtcdError:
        return EtcdError(f"the server {what}", endpoint=self._endpoint, maybe_applied=True)
