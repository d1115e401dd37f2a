"""Flow control (RFC 9113, 5.2 and 6.9): how much DATA each side may still send, on a stream and on the connection.

Only the payload of DATA counts, its padding too. Each side gives the other room and renews it by WINDOW_UPDATE; a
change of SETTINGS_INITIAL_WINDOW_SIZE moves the windows of open streams, even below zero (6.9.2), and not the
connection's. We have one stream at a time.
"""

from __future__ import annotations

from celery_etcdlock.etcd.frames import LEAST_FRAME_SIZE, NUMBER, WINDOW_UPDATE, Http2Error, frame

DEFAULT_WINDOW = 65_535  # 6.9.2
LARGEST_WINDOW = 2**31 - 1  # 6.9.1
OUR_WINDOW = 8 * 1024 * 1024


class Outgoing:
    """What we may send."""

    __slots__ = ("_connection", "_initial", "_stream", "largest_frame")

    def __init__(self) -> None:
        self.largest_frame = LEAST_FRAME_SIZE
        self._connection = self._initial = self._stream = DEFAULT_WINDOW

    def open_stream(self) -> None:
        self._stream = self._initial

    def room(self) -> int:
        """Bytes that the next DATA frame may have; zero or less: none until the peer makes room."""
        return min(self._connection, self._stream, self.largest_frame)

    def sent(self, length: int) -> None:
        self._connection -= length
        self._stream -= length

    def more_on_stream(self, increment: int) -> None:
        self._stream = _widened(self._stream, increment)

    def more_on_connection(self, increment: int) -> None:
        self._connection = _widened(self._connection, increment)

    def set_initial(self, size: int, *, stream_is_open: bool) -> None:
        if size > LARGEST_WINDOW:
            raise Http2Error("FLOW_CONTROL_ERROR", f"a setting of {size} bytes as window")
        if stream_is_open:
            self._stream = _widened(self._stream, size - self._initial)
        self._initial = size


class Incoming:
    """What the peer may send, on a stream or (0) the connection: our window, renewed when half of it is used."""

    __slots__ = ("_left", "_stream_id")

    def __init__(self, stream_id: int = 0) -> None:
        self._stream_id = stream_id
        self._left = OUR_WINDOW

    def received(self, length: int) -> bytes:
        """Take note of so much DATA; the WINDOW_UPDATE that is due, if any."""
        self._left -= length
        if self._left > OUR_WINDOW // 2:
            return b""
        if self._left < 0:
            raise Http2Error("FLOW_CONTROL_ERROR", "more data than the window allows")
        update = frame(WINDOW_UPDATE, 0, self._stream_id, NUMBER.pack(OUR_WINDOW - self._left))
        self._left = OUR_WINDOW
        return update


def _widened(window: int, increment: int) -> int:
    if window + increment > LARGEST_WINDOW:
        raise Http2Error("FLOW_CONTROL_ERROR", f"a window of {window + increment} bytes")
    return window + increment
