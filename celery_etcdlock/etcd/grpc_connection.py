"""gRPC on one HTTP/2 connection, one call at a time: ``Http2Protocol`` with a channel under it, and deadlines.

States: *new*, *idle* after ``open``, *busy* from the start of a call to its end, *closed*. A connection comes back
from busy to idle only when a reply has arrived whole, or a stream was cancelled between two of its messages. Whatever
else ends a call, an error or any exception that a signal handler raised in the middle, leaves it busy, and a busy
connection is never used again: nobody can know which bytes of which call are next on it.

``maybe_applied`` turns true right before the last byte of the request is handed to the kernel, since a server can't
act on half a message, and false again if the kernel took no more bytes in time. The server's own word overrides that:
GOAWAY with a last stream below ours, or REFUSED_STREAM, mean that it didn't look at the request.

An idle connection is looked at before it is used again: what has arrived meanwhile (GOAWAY, end of file, pings) is
digested without sending anything.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

from celery_etcdlock.etcd.endpoints import EndpointHealth
from celery_etcdlock.etcd.errors import ConnectFailed, ConnectionLost, DeadlinePassed, EtcdError, NotProcessed
from celery_etcdlock.etcd.frames import REFUSED_STREAM, Http2Error, error_name, not_http2
from celery_etcdlock.etcd.http2_protocol import PREFACE, Http2Protocol
from celery_etcdlock.etcd.sockets import Channel, NotAllSent
from celery_etcdlock.etcd.tls import explain_tls_error

LAST_STREAM_ID = 2**30
PING_AFTER_SECONDS = 10.0  # etcd takes offence at pings more often than every 5 s
PONG_WITHIN_SECONDS = 10.0
PONGS_APART_SECONDS = 1.0
CANCEL_WITHIN_SECONDS = 0.05


class GrpcConnection:
    """A connection that carries one call at a time. Not for use by two threads at once, but for ``interrupt``."""

    def __init__(
        self, channel: Channel, health: EndpointHealth, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.health = health
        self.endpoint = str(health.endpoint)
        self.idle_since = monotonic()
        self._channel = channel
        self._monotonic = monotonic
        self._protocol = Http2Protocol(self.endpoint)
        self._busy = True
        self._receiving = False
        self._retired = False
        self._sent_whole = False
        self._heard_at = self.idle_since
        self._calm_at = self.idle_since
        self._pinged_at: float | None = None
        self._pongs_at = 0.0

    # ---- life

    def open(self, deadline: float) -> None:
        """Exchange HTTP/2 settings, which proves that an HTTP/2 server is there; raises ConnectFailed."""
        protocol = self._protocol
        try:
            self._channel.send(PREFACE, deadline)
            while not protocol.ready:
                self._read(deadline)
        except ssl.SSLError as error:
            raise explain_tls_error(error, self.endpoint) from error
        except TimeoutError as error:
            problem = "connected, but no HTTP/2 settings came in time: is this etcd's client port?"
            raise ConnectFailed(problem, endpoint=self.endpoint) from error
        except OSError as error:
            raise ConnectFailed(
                f"the server closed the connection at once ({error.strerror or error}): is this "
                "etcd's client port, and does it want TLS (https://, etcdlock_ca_cert)?",
                endpoint=self.endpoint,
            ) from error
        except Http2Error as error:
            raise not_http2(self.endpoint, f"broke the HTTP/2 protocol: it sent {error}") from error
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
                self._protocol.receive(data)
        except (OSError, Http2Error, EtcdError):
            return False
        if self._protocol.last_processed is not None:
            self._retired = True
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

    def call(self, block: bytes, message: bytes, deadline: float, *, leave: bool = False) -> bytes:
        """A unary call with these headers: send one message, return the one that comes back.

        ``leave``: it is a call with many answers. Our side stays open until the first is here; then it is cancelled.
        """
        self._start(block, message, deadline, end=not leave)
        reply = self._protocol.reply
        answer: bytes | None = None
        try:
            while (not leave or (answer := reply.next_message()) is None) and not reply.ended:
                self._read(deadline)
        except (OSError, Http2Error) as error:
            raise self._explain(error) from error
        if leave:
            self.end_stream()
        else:
            self._busy = False
        return reply.only_message() if answer is None else answer

    def start_stream(self, block: bytes, message: bytes, deadline: float, *, half_close: bool) -> None:
        """Begin a call with many answers; ``half_close`` says that this message is the last."""
        self._start(block, message, deadline, end=half_close)
        self._heard_at = self._calm_at = self._monotonic()
        self._pinged_at = None

    def end_stream(self) -> None:
        """Between two messages of a stream: tell the server that nobody reads on, and carry another call after it."""
        if self._receiving or self._retired:
            return
        try:
            self._channel.send(self._protocol.cancel(), self._monotonic() + CANCEL_WITHIN_SECONDS)
        except OSError:
            return
        self._busy = False

    def receive(self, deadline: float) -> bytes | None:
        """The next message of a stream; None when none came until ``deadline``; EOFError at a clean end."""
        if self._receiving:
            raise self._lost("an earlier exception interrupted it")
        self._receiving = True
        reply = self._protocol.reply
        try:
            while (message := reply.next_message()) is None:
                if reply.ended:
                    reply.check_status()
                    reply.check_rest()
                    self._receiving = False
                    raise EOFError
                if not self._wait(deadline):
                    break
        except (OSError, Http2Error) as error:
            raise self._explain(error) from error
        self._receiving = False
        return message

    def _wait(self, deadline: float) -> bool:
        """Read once, and ping a server that has been silent; false at the deadline."""
        if self._pinged_at is None:
            wake = self._heard_at + PING_AFTER_SECONDS
        else:
            wake = self._pinged_at + PONG_WITHIN_SECONDS
        protocol = self._protocol
        protocol.answer_pings()
        try:
            if owed := protocol.take_owed():
                self._channel.send(owed, self._monotonic() + PONG_WITHIN_SECONDS)
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
                self._channel.send(self._protocol.ping(), now + PONG_WITHIN_SECONDS)
                self._pinged_at = now
            return now < deadline
        self._heard_at = self._monotonic()
        if self._heard_at - self._calm_at > PING_AFTER_SECONDS:
            self._calm_at = self._heard_at
            self._protocol.calm()
        self._pinged_at = None
        return True

    def _start(self, block: bytes, message: bytes, deadline: float, *, end: bool) -> None:
        if self._busy or self._retired:
            raise RuntimeError("this connection is busy or closed")
        self._busy = True
        self._sent_whole = False
        protocol = self._protocol
        if not protocol.streams_allowed:
            raise NotProcessed("the server allows no calls at present", endpoint=self.endpoint)
        try:
            if protocol.pongs:
                self._answer_pings()
            data = protocol.begin(block, message, end=end)
            if protocol.stream_id >= LAST_STREAM_ID:
                self._retired = True
            while protocol.unsent:
                self._channel.send(data, deadline)
                while not (data := protocol.next_part()):
                    protocol.must_send = True
                    self._read(deadline)
                    if protocol.reply.ended:  # refused before it was read to the end
                        self._retired = True
                        return
            self._sent_whole = True
            try:
                self._channel.send(data, deadline)
            except NotAllSent:
                self._sent_whole = False
                raise
        except (OSError, Http2Error) as error:
            raise self._explain(error) from error

    # ---- bytes

    def _read(self, deadline: float) -> None:
        """Receive once and digest, or wake to answer pings. What we owe goes first if the peer may wait for it."""
        protocol = self._protocol
        if protocol.pongs:
            self._answer_pings()
        if protocol.must_send:
            self._channel.send(protocol.take_owed(), deadline)
        wake = min(deadline, self._pongs_at) if protocol.pongs else deadline
        try:
            data = self._channel.receive(wake)
        except TimeoutError as error:
            if wake == deadline or error.errno is not None:
                raise
            return
        if not data:
            raise ConnectionResetError("closed by the server")
        protocol.receive(data)
        last_processed, reply = protocol.last_processed, protocol.reply
        if last_processed is not None:
            self._retired = True
            if protocol.stream_id > last_processed and not reply.ended:
                raise NotProcessed(f"the server is going away ({protocol.goaway_reason})", endpoint=self.endpoint)
        if reply.reset_code is not None and not reply.ended:
            if reply.reset_code == REFUSED_STREAM:
                raise NotProcessed("the server refused the stream", endpoint=self.endpoint)
            raise self._lost(f"the server reset the stream ({error_name(reply.reset_code)})")

    def _answer_pings(self) -> None:
        now = self._monotonic()
        if now >= self._pongs_at:
            self._pongs_at = now + PONGS_APART_SECONDS
            self._protocol.answer_pings()

    # ---- errors

    def _lost(self, why: str) -> ConnectionLost:
        text = f"the connection was lost in a call: {why}"
        return ConnectionLost(text, endpoint=self.endpoint, maybe_applied=self._sent_whole)

    def _explain(self, error: Exception) -> EtcdError:
        if isinstance(error, ssl.SSLError):
            return explain_tls_error(error, self.endpoint, sent=self._sent_whole)
        if isinstance(error, TimeoutError) and error.errno is None:
            text = f"no answer in time{self._protocol.reply.late()}"
            return DeadlinePassed(text, endpoint=self.endpoint, maybe_applied=self._sent_whole)
        if isinstance(error, Http2Error):
            return self._lost(f"the server broke the HTTP/2 protocol: {error}")
        return self._lost(getattr(error, "strerror", None) or str(error) or type(error).__name__)
