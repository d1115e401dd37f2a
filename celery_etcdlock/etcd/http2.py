"""gRPC on one HTTP/2 connection, one call at a time.

States: *new*, *idle* after ``open``, *busy* from the start of a call to its end, *closed*. A connection comes back
from busy to idle only when a reply has arrived whole. Whatever else ends a call, an error or any exception that a
signal handler raised in the middle, leaves it busy, and a busy connection is never used again: nobody can know
which bytes of which call are next on it.

``maybe_applied`` turns true right before the last byte of the request is handed to the kernel, since a server can't
act on half a message. The server's own word overrides that: GOAWAY with a last stream below ours, or REFUSED_STREAM,
mean that it didn't look at the request.

An idle connection is looked at before it is used again: what has arrived meanwhile (GOAWAY, end of file, pings) is
digested without sending anything.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, NoAvailableStreamIDError, TooManyStreamsError
from h2.settings import SettingCodes, Settings

from .errors import ConnectFailed, ConnectionLost, DeadlinePassed, EtcdError, NotProcessed
from .frames import FrameSieve, not_http2
from .header_blocks import RememberingDecoder, RememberingEncoder
from .reply import Reply, framed
from .sockets import Channel
from .tls import explain_tls_error

__all__ = ["Headers", "Http2Connection"]

WINDOW_BYTES = 8 * 1024 * 1024
LAST_STREAM_ID = 2**30
PING_AFTER_SECONDS = 10.0  # etcd takes offence at pings more often than every 5 s
PONG_WITHIN_SECONDS = 10.0

# hpack writes every header to its debug log, the login token too.
if logging.getLogger("hpack").level == logging.NOTSET:
    logging.getLogger("hpack").setLevel(logging.INFO)

Headers = tuple[tuple[bytes, bytes], ...]

# Our own headers are fixed and right; the peer's are read by name only.
_CONFIG = H2Configuration(
    client_side=True,
    header_encoding=None,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
)


class _H2(H2Connection):
    #: How many closed streams are kept in mind, for frames that come late. h2's own 65,536 take 9 MB in the end.
    MAX_CLOSED_STREAMS = 64


class Http2Connection:
    """A connection that carries one call at a time. Not for use by two threads at once, but for ``interrupt``."""

    def __init__(self, channel: Channel, endpoint: str, monotonic: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.idle_since = monotonic()
        self._channel = channel
        self._monotonic = monotonic
        self._h2 = _H2(config=_CONFIG)
        self._h2.encoder = RememberingEncoder()
        self._h2.decoder = RememberingDecoder()
        self._sieve = FrameSieve(endpoint)
        self._ready = False
        self._busy = True
        self._receiving = False
        self._retired = False
        self._must_flush = False
        self._stream_id = 0
        self._reply = Reply(endpoint)
        self._sent_whole = False
        self._heard_at = self.idle_since
        self._pinged_at: float | None = None

    # ---- life

    def open(self, deadline: float) -> None:
        """Exchange HTTP/2 settings, which proves that an HTTP/2 server is there; raises ConnectFailed."""
        h2 = self._h2
        h2.local_settings = Settings(
            client=True,
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES},
        )
        h2.initiate_connection()
        h2.increment_flow_control_window(WINDOW_BYTES - 65535)
        try:
            self._flush(deadline)
            while not self._ready:
                self._read(deadline)
        except EtcdError:
            raise
        except ssl.SSLError as error:
            raise explain_tls_error(error, self.endpoint) from error
        except TimeoutError as error:
            raise ConnectFailed(
                f"{self.endpoint}: connected, but no HTTP/2 settings came in time: is this etcd's client port?",
                endpoint=self.endpoint,
            ) from error
        except OSError as error:
            raise ConnectFailed(
                f"{self.endpoint}: the server closed the connection at once ({error.strerror or error}): is this "
                "etcd's client port, and does it want TLS (https://, etcdlock_ca_cert)?",
                endpoint=self.endpoint,
            ) from error
        except H2Error as error:
            raise not_http2(self.endpoint, f"broke the HTTP/2 protocol ({error})") from error
        self._busy = False

    @property
    def reusable(self) -> bool:
        return not (self._busy or self._retired)

    def still_alive(self) -> bool:
        """Digest what arrived while idle; false when the connection can't carry another call. Sends nothing."""
        if not self.reusable:
            return False
        try:
            while (data := self._channel.receive_now()) is not None:
                if not data:
                    return False
                self._feed(data)
        except (OSError, H2Error, EtcdError):
            return False
        return self.reusable

    def interrupt(self) -> None:
        """From another thread: end the call that is under way with ConnectionLost."""
        self._retired = True
        self._channel.interrupt()

    def close(self) -> None:
        self._retired = True
        self._channel.close()

    def forget(self) -> None:
        """In a forked child: drop this copy and leave the parent's connection alone."""
        self._retired = True
        self._channel.forget()

    # ---- calls

    def call(self, headers: Headers, message: bytes, deadline: float) -> bytes:
        """A unary call: send one message, return the one that comes back."""
        self._start(headers, message, deadline, half_close=True)
        reply = self._reply
        try:
            while not reply.ended:
                self._read(deadline)
        except EtcdError:
            raise
        except (OSError, H2Error) as error:
            raise self._explain(error) from error
        self._busy = False
        return reply.only_message()

    def start_stream(self, headers: Headers, message: bytes, deadline: float, *, half_close: bool) -> None:
        """Begin a call with many answers; ``half_close`` says that this message is the last."""
        self._start(headers, message, deadline, half_close=half_close)
        self._heard_at = self._monotonic()
        self._pinged_at = None
        self._retired = True  # a stream's connection isn't shared afterwards: closing it is the cancellation

    def receive(self, deadline: float) -> bytes | None:
        """The next message of a stream; None when none came until ``deadline``; EOFError at a clean end."""
        if self._receiving:
            raise self._lost("an earlier exception interrupted it")
        self._receiving = True
        reply = self._reply
        try:
            while (message := reply.next_message()) is None:
                if reply.ended:
                    reply.check_status()
                    raise EOFError
                if not self._wait(deadline):
                    break
        except EtcdError:
            raise
        except (OSError, H2Error) as error:
            raise self._explain(error) from error
        self._receiving = False
        return message

    def _wait(self, deadline: float) -> bool:
        """Read once, and ping a server that has been silent; false at the deadline."""
        if self._pinged_at is None:
            wake = self._heard_at + PING_AFTER_SECONDS
        else:
            wake = self._pinged_at + PONG_WITHIN_SECONDS
        try:
            self._flush(self._monotonic() + PONG_WITHIN_SECONDS)
        except TimeoutError:
            raise self._lost("the server doesn't read") from None
        try:
            self._read(min(deadline, wake))
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's ETIMEDOUT: keep-alive probes unanswered
                raise
            now = self._monotonic()
            if now >= wake:
                if self._pinged_at is not None:
                    raise self._lost("no answer to a ping") from None
                self._h2.ping(b"etcdlock")
                self._pinged_at = now
            return now < deadline
        self._heard_at = self._monotonic()
        self._pinged_at = None
        return True

    def _start(self, headers: Headers, message: bytes, deadline: float, *, half_close: bool) -> None:
        if not self.reusable:
            raise RuntimeError("this connection is busy or closed")
        self._busy = True
        self._sent_whole = False
        self._reply = Reply(self.endpoint)
        try:
            try:
                self._stream_id = self._h2.get_next_available_stream_id()
                self._h2.send_headers(self._stream_id, headers)
            except (NoAvailableStreamIDError, TooManyStreamsError) as error:
                raise NotProcessed(f"{self.endpoint}: {error}", endpoint=self.endpoint) from error
            if self._stream_id >= LAST_STREAM_ID:
                self._retired = True
            self._send_body(framed(message), deadline, half_close)
        except EtcdError:
            raise
        except (OSError, H2Error) as error:
            raise self._explain(error) from error

    def _send_body(self, body: bytes, deadline: float, half_close: bool) -> None:
        h2, stream_id, offset = self._h2, self._stream_id, 0
        while True:
            allowed = min(h2.local_flow_control_window(stream_id), h2.max_outbound_frame_size)
            if allowed >= len(body) - offset:
                h2.send_data(stream_id, body[offset:] if offset else body, end_stream=half_close)
                self._sent_whole = True
                self._flush(deadline)
                return
            if allowed > 0:
                h2.send_data(stream_id, body[offset : offset + allowed])
                offset += allowed
                continue
            self._must_flush = True
            self._read(deadline)
            if self._reply.ended:  # refused before it was read to the end
                self._retired = True
                return

    # ---- bytes

    def _flush(self, deadline: float) -> None:
        self._must_flush = False
        data = self._sieve.take_pongs() + self._h2.data_to_send()
        if data:
            self._channel.send(data, deadline)

    def _read(self, deadline: float) -> None:
        """Receive once and digest. What we owe the peer is sent first only if the peer may be waiting for it.

        etcd measures the path with a PING on most calls; its answer travels with our next request.
        """
        if self._must_flush:
            self._flush(deadline)
        data = self._channel.receive(deadline)
        if not data:
            raise ConnectionResetError("closed by the server")
        self._feed(data)
        if self._reply.ended:
            return
        sieve = self._sieve
        if sieve.last_processed is not None and self._stream_id > sieve.last_processed:
            raise NotProcessed(
                f"{self.endpoint}: the server is going away ({sieve.goaway_reason})", endpoint=self.endpoint
            )
        code = self._reply.reset_code
        if code is not None:
            name = ErrorCodes(code).name if code in ErrorCodes.__members__.values() else str(code)
            if code == ErrorCodes.REFUSED_STREAM:
                raise NotProcessed(f"{self.endpoint}: the server refused the stream", endpoint=self.endpoint)
            raise self._lost(f"the server reset the stream ({name})")

    def _feed(self, data: bytes) -> None:
        """Give whole frames to h2, and digest what it makes of them."""
        sieve = self._sieve
        if not self._ready:
            sieve.check_first_bytes(data)
        runs = sieve.sift(data)
        if sieve.last_processed is not None:
            self._retired = True
        events: list[h2_events.Event] = []
        for run in runs:
            events += self._h2.receive_data(run)
        for event in events:
            self._digest(event)

    def _digest(self, event: h2_events.Event) -> None:
        kind = type(event)
        if kind is h2_events.RemoteSettingsChanged:
            self._ready = True
            self._must_flush = True
            return
        if getattr(event, "stream_id", None) != self._stream_id:
            return
        reply = self._reply
        if isinstance(event, h2_events.DataReceived):
            data, length = event.data, event.flow_controlled_length
            if data:
                reply.add_data(data)
            if length:
                self._h2.acknowledge_received_data(length, self._stream_id)
                self._must_flush = True
        elif isinstance(event, (h2_events.ResponseReceived, h2_events.TrailersReceived)):
            reply.add_headers(event.headers or ())
        elif kind is h2_events.StreamEnded:
            reply.ended = True
        elif isinstance(event, h2_events.StreamReset) and not reply.ended:
            reply.reset_code = int(event.error_code or 0)

    # ---- errors

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(
            f"{self.endpoint}: the connection was lost in a call: {why}",
            endpoint=self.endpoint,
            maybe_applied=self._sent_whole,
        )

    def _explain(self, error: Exception) -> EtcdError:
        if isinstance(error, ssl.SSLError):
            return explain_tls_error(error, self.endpoint, sent=self._sent_whole)
        if isinstance(error, TimeoutError) and error.errno is None:
            return DeadlinePassed(
                f"{self.endpoint}: no answer in time", endpoint=self.endpoint, maybe_applied=self._sent_whole
            )
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self._lost(reason)
