"""The client's side of an HTTP/2 connection (RFC 9113), without I/O or clock: bytes in, bytes out, a stream at a time.

We speak on one stream at a time, with constant headers, and never accept a push, so the states of section 5.1 come down
to these. The current stream is *open* from ``begin`` until ``reply.ended`` (END_STREAM or RST_STREAM of the peer) or
``cancel``. Those before it are *closed*: what still arrives on one that the peer ended is its error (5.1), on one that
we cancelled it is late, and ignored, but for what concerns the connection: its windows and the table of headers (5.1,
5.4.2). Those after it, the even ones and stream 0 for what belongs to streams are *idle*: a frame on them is an error.

Of the connection: not ``ready`` until the peer's SETTINGS (3.4); *going away* from a GOAWAY (6.8), which may come more
than once, and lets streams up to ``last_processed`` end.

What we owe the peer, answers to SETTINGS and room to send, is collected, and goes with the next bytes that are sent;
``must_send`` says that the peer may be waiting for it. The answers to PINGs are kept apart (``pongs``), since they may
wait a little: gRPC servers measure the path with a PING on each call, but send none while one is unanswered.

Trust: the peer may be anything. Frames are bounded by the size that we allow, header blocks by ``LARGEST_LIST_BYTES``,
the rest by the frames that may come between two that carry the reply on: past ``MOST_TALK`` of them it is a flood, and
the connection ends. Whatever breaks a rule raises Http2Error, after which the conversation is over.
"""

from __future__ import annotations

from celery_etcdlock.etcd import frames
from celery_etcdlock.etcd.flow_control import DEFAULT_WINDOW, OUR_WINDOW, Incoming, Outgoing
from celery_etcdlock.etcd.grpc_reply import PREFIX_BYTES, Reply, framed
from celery_etcdlock.etcd.header_blocks import LARGEST_LIST_BYTES, RememberingDecoder

MOST_TALK = 1000

_OUR_SETTINGS = {
    frames.HEADER_TABLE_SIZE: 0,
    frames.ENABLE_PUSH: 0,
    frames.INITIAL_WINDOW_SIZE: OUR_WINDOW,
    frames.MAX_HEADER_LIST_SIZE: LARGEST_LIST_BYTES,
}
PREFACE = (
    frames.CLIENT_PREFACE
    + frames.frame(frames.SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*each) for each in _OUR_SETTINGS.items()))
    + frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.NUMBER.pack(OUR_WINDOW - DEFAULT_WINDOW))
)


class Http2Protocol:
    """See the module."""

    def __init__(self, endpoint: str) -> None:
        self.ready = False
        self.must_send = False
        self.streams_allowed = True  # unless the peer's SETTINGS_MAX_CONCURRENT_STREAMS is 0 (5.1.2)
        self.unsent = memoryview(b"")  # what of the request must wait for the peer's windows
        self.stream_id = -1
        self.reply = Reply(endpoint, ended=True)
        self.last_processed: int | None = None
        self.goaway_reason = ""
        self._endpoint = endpoint
        self._partial = b""
        self._owed: list[bytes] = []
        self.pongs: list[bytes] = []
        self._decoder = RememberingDecoder()
        self._connection_window = self._stream_window = Incoming()
        self._outgoing = Outgoing()
        self._cancelled_up_to = 0
        self._ends = True
        self._talk = 0
        self._block: bytearray | None = None  # of headers, until END_HEADERS
        self._block_flags = self._block_stream = 0

    # ---- what we say

    def begin(self, block: bytes, message: bytes, *, end: bool) -> bytes:
        """Open the next stream: the bytes to send now. ``end``: the message is the last on our side."""
        stream_id = self.stream_id = self.stream_id + 2
        self.reply = Reply(self._endpoint)
        self._stream_window = Incoming(stream_id)
        outgoing = self._outgoing
        outgoing.open_stream()
        self._talk = 0
        head = frames.header_frames(stream_id, block)
        length = len(message) + PREFIX_BYTES
        self._ends = end
        if length > outgoing.room():
            self.unsent = memoryview(framed(message))
            return self.take_owed() + head
        outgoing.sent(length)
        data_head = frames.HEADER.pack(
            length >> 8, length & 255, frames.DATA, frames.END_STREAM if end else 0, stream_id
        )
        whole = head + data_head + framed(message)
        return self.take_owed() + whole if self._owed else whole

    def next_part(self) -> bytes:
        """A frame's worth of what is unsent, or nothing while the windows have no room."""
        room = self._outgoing.room()
        if room <= 0:
            return b""
        part, self.unsent = self.unsent[:room], self.unsent[room:]
        self._outgoing.sent(len(part))
        self._talk = 0
        flags = frames.END_STREAM if self._ends and not self.unsent else 0
        return frames.frame(frames.DATA, flags, self.stream_id, part)

    def cancel(self) -> bytes:
        """End the current stream: the bytes that say so (RST_STREAM, 6.4), unless both sides have ended it."""
        if self.reply.ended and self._ends and not self.unsent:
            return self.take_owed()
        self._cancelled_up_to = self.stream_id
        self.reply.ended = True
        self.unsent = memoryview(b"")
        return self.take_owed() + frames.frame(frames.RST_STREAM, 0, self.stream_id, frames.NUMBER.pack(frames.CANCEL))

    def ping(self) -> bytes:
        return self.take_owed() + frames.frame(frames.PING, 0, 0, b"etcdlock")

    def take_owed(self) -> bytes:
        self.must_send = False
        owed = b"".join(self._owed)
        self._owed.clear()
        return owed

    def answer_pings(self) -> None:
        """From now on we owe the peer the answers that could wait."""
        self._owed += self.pongs
        self.pongs.clear()
        self.must_send = True

    def calm(self) -> None:
        """A while has passed: what the peer has said till now is no flood."""
        self._talk = 0

    # ---- what the peer says

    def receive(self, data: bytes) -> None:
        """Digest what arrived, in pieces of any size. Raises Http2Error; NotEtcd for a greeting of another kind."""
        if self._partial:
            data = self._partial + data
        if not self.ready:
            frames.check_greeting(data, self._endpoint)
        position, size = 0, len(data)
        unpack = frames.HEADER.unpack_from
        while size - position >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 8 | low
            if length > frames.LEAST_FRAME_SIZE:
                raise frames.Http2Error("FRAME_SIZE_ERROR", f"a frame of {length} bytes")
            start, end = position + frames.HEADER_BYTES, position + frames.HEADER_BYTES + length
            if end > size:
                break
            position = end
            if self._block is not None and kind != frames.CONTINUATION:
                raise frames.Http2Error("PROTOCOL_ERROR", "a header block that isn't continued")  # 6.10
            stream_id &= frames.LOW_31_BITS
            if kind not in _CARRY_THE_REPLY:
                frames.check_shape(kind, stream_id, length)
                self._just_talk(kind)
            if handler := _HANDLERS.get(kind):  # frames of other types are ignored (4.1), but counted
                handler(self, flags, stream_id, data[start:end])
        self._partial = data[position:]

    def _just_talk(self, kind: int) -> None:
        self._talk += 1
        if self._talk > MOST_TALK:
            raise frames.Http2Error("ENHANCE_YOUR_CALM", f"a flood of frames, the last of type {kind}")

    def _check_opened(self, stream_id: int, what: str) -> None:
        if stream_id > self.stream_id or not stream_id & 1:
            raise frames.Http2Error("PROTOCOL_ERROR", f"{what} on stream {stream_id}, which we didn't open")

    def _is_current(self, stream_id: int, what: str) -> bool:
        """False for what comes late on a stream that we cancelled; raises for a stream that can't have any frame."""
        if stream_id == self.stream_id and not self.reply.ended:
            return True
        self._check_opened(stream_id, what)
        if stream_id > self._cancelled_up_to:
            raise frames.Http2Error("STREAM_CLOSED", f"{what} on stream {stream_id}, which it had ended")
        return False

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.1
        length = len(payload)
        if update := self._connection_window.received(length):
            self._owe(update)
        if not self._is_current(stream_id, "DATA"):
            return self._just_talk(frames.DATA)
        reply = self.reply
        if not reply.begun:
            raise frames.Http2Error("PROTOCOL_ERROR", "DATA before HEADERS")  # 8.1
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        if flags & frames.END_STREAM:
            reply.ended = True
        elif update := self._stream_window.received(length):
            self._owe(update)
        if payload:
            self._talk = 0
            reply.add_data(payload)
        else:
            self._just_talk(frames.DATA)
        return None

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.2
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise frames.Http2Error("FRAME_SIZE_ERROR", "HEADERS without the priority that they announce")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._digest_block(flags, stream_id, payload)
        else:
            self._block, self._block_flags, self._block_stream = bytearray(payload), flags, stream_id

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.10
        block = self._block
        if block is None or stream_id != self._block_stream:
            raise frames.Http2Error("PROTOCOL_ERROR", "CONTINUATION of nothing")
        self._just_talk(frames.CONTINUATION)
        block += payload
        if len(block) > LARGEST_LIST_BYTES:
            raise frames.Http2Error("ENHANCE_YOUR_CALM", f"headers of more than {LARGEST_LIST_BYTES} bytes")
        if flags & frames.END_HEADERS:
            self._block = None
            self._digest_block(self._block_flags, stream_id, bytes(block))

    def _digest_block(self, flags: int, stream_id: int, block: bytes) -> None:
        fields = self._decoder.decode(block)  # always: it may change the table
        if not self._is_current(stream_id, "HEADERS"):
            return self._just_talk(frames.HEADERS)
        reply, last = self.reply, bool(flags & frames.END_STREAM)
        if reply.begun and not last:
            raise frames.Http2Error("PROTOCOL_ERROR", "HEADERS in the middle of a reply")  # 8.1
        if not reply.begun:
            status = fields.http_status
            if len(status) != 3 or not status.isdigit():
                raise frames.Http2Error("PROTOCOL_ERROR", "a reply without an HTTP status")  # 8.3.2
            if status[:1] == b"1":
                if last:
                    raise frames.Http2Error("PROTOCOL_ERROR", "a reply that ends before it has begun")  # 8.1
                return self._just_talk(frames.HEADERS)
        reply.add_headers(fields, last)
        return None

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.4
        self._check_opened(stream_id, "RST_STREAM")
        if stream_id == self.stream_id and not self.reply.ended:
            self.reply.reset_code = int.from_bytes(payload, "big")

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.5
        if flags & frames.ACK:
            if payload:
                raise frames.Http2Error("FRAME_SIZE_ERROR", "SETTINGS that acknowledge and set")
            return
        for setting, value in frames.SETTING.iter_unpack(payload):
            if setting == frames.INITIAL_WINDOW_SIZE:
                self._outgoing.set_initial(value, stream_is_open=not self.reply.ended)
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.LEAST_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                    raise frames.Http2Error("PROTOCOL_ERROR", f"a setting of {value} bytes as frame size")
                self._outgoing.largest_frame = value
            elif setting == frames.MAX_CONCURRENT_STREAMS:
                self.streams_allowed = value > 0
            elif setting == frames.ENABLE_PUSH and value:
                raise frames.Http2Error("PROTOCOL_ERROR", "a server that sets ENABLE_PUSH")  # 6.5.2
        self.ready = True
        self._owe(_SETTINGS_ACK)

    def _on_push(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.6
        raise frames.Http2Error("PROTOCOL_ERROR", "a push, which we have forbidden")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.7
        if not flags & frames.ACK:
            self.pongs.append(_PONG + payload)
            if len(self.pongs) > MOST_TALK:  # these wait, whatever comes between them
                raise frames.Http2Error("ENHANCE_YOUR_CALM", "a flood of PINGs")

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.8
        last, code = (int.from_bytes(payload[start : start + 4], "big") for start in (0, 4))
        last &= frames.LOW_31_BITS
        self.last_processed = last if self.last_processed is None else min(last, self.last_processed)
        self.goaway_reason = payload[8:].decode("utf-8", "replace")[:200] or frames.error_name(code)

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:  # 6.9
        increment = int.from_bytes(payload, "big") & frames.LOW_31_BITS
        if not increment:
            raise frames.Http2Error("PROTOCOL_ERROR", "a WINDOW_UPDATE of nothing")
        if not stream_id:
            return self._outgoing.more_on_connection(increment)
        self._check_opened(stream_id, "WINDOW_UPDATE")
        if stream_id == self.stream_id and not self.reply.ended:  # else of a closed stream, which is fine
            self._outgoing.more_on_stream(increment)
        return None

    def _owe(self, data: bytes) -> None:
        self._owed.append(data)
        self.must_send = True


_SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.ACK, 0, b"")
_PONG = frames.frame(frames.PING, frames.ACK, 0, bytes(8))[: frames.HEADER_BYTES]
_CARRY_THE_REPLY = (frames.DATA, frames.HEADERS, frames.CONTINUATION)
_HANDLERS = {
    frames.DATA: Http2Protocol._on_data,
    frames.HEADERS: Http2Protocol._on_headers,
    frames.RST_STREAM: Http2Protocol._on_reset,
    frames.SETTINGS: Http2Protocol._on_settings,
    frames.PUSH_PROMISE: Http2Protocol._on_push,
    frames.PING: Http2Protocol._on_ping,
    frames.GOAWAY: Http2Protocol._on_goaway,
    frames.WINDOW_UPDATE: Http2Protocol._on_window_update,
    frames.CONTINUATION: Http2Protocol._on_continuation,
}
