"""What a server says on one stream, read as gRPC: messages with a five-byte prefix, then a status."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from celery_etcdlock.etcd.errors import EtcdError, NotEtcd, StatusCode, status_error
from celery_etcdlock.etcd.header_blocks import NO_FIELDS, Fields

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


@dataclass(slots=True)
class Reply:
    """The reply being received."""

    _endpoint: str
    _head: Fields = NO_FIELDS
    _trailers: Fields = NO_FIELDS
    _is_grpc: bool = False
    _body: bytearray = field(default_factory=bytearray)
    begun: bool = False
    ended: bool = False
    reset_code: int | None = None

    def add_headers(self, fields: Fields, last: bool) -> None:
        """Headers, or trailers, or both at once ("trailers only"). A status counts in the ``last`` ones alone."""
        if not self.begun:
            self.begun = True
            self._head = fields
            self._is_grpc = fields.http_status == b"200" and fields.content_type.startswith(b"application/grpc")
        if last:
            self.ended = True
            self._trailers = fields

    def add_data(self, data: bytes) -> None:
        if self._is_grpc:  # what else a server may say, pages of HTML for one, isn't kept
            self._body += data
            if len(self._body) > PREFIX_BYTES + LARGEST_MESSAGE_BYTES:
                raise self._malformed(f"sent more than {LARGEST_MESSAGE_BYTES} bytes")

    def late(self) -> str:
        """For a time-out: that something else than a gRPC server has begun to answer."""
        begun = self.begun and not self._is_grpc
        return f" but half a page with HTTP status {self._head.http_status.decode()}" if begun else ""

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
        verdict, http_status = self._trailers.grpc_status, self._head.http_status
        if verdict == b"0":
            if not self._is_grpc:  # its messages weren't kept
                raise self._malformed("answered OK with another content type than gRPC's")
            return
        if verdict:
            details = unquote_to_bytes(self._trailers.grpc_message).decode("utf-8", "replace")
            code = int(verdict) if verdict.isdigit() and len(verdict) < 5 else StatusCode.UNKNOWN
            raise status_error(code, details, self._endpoint)
        shown = http_status.decode()
        if http_status in _HTTP_STATUS:
            raise status_error(_HTTP_STATUS[http_status], f"HTTP status {shown}", self._endpoint)
        if not self._is_grpc:
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
