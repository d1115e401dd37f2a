"""The rules of RFC 9113, each broken once; h2 as the other side for flow control; pieces of any size."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.etcd.errors import ConnectionLost, DeadlinePassed
from celery_etcdlock.etcd.flow_control import OUR_WINDOW
from celery_etcdlock.etcd.frames import Http2Error, frame
from celery_etcdlock.etcd.header_blocks import LARGEST_LIST_BYTES, header_block
from celery_etcdlock.etcd.http2_protocol import PREFACE, Http2Protocol
from celery_etcdlock.etcd.messages import WatchResponse
from tests.unit.etcd.recorded import (
    BEGINNING,
    CONTINUATION,
    DATA,
    ETCD_GREETS,
    GOAWAY,
    HEADERS,
    MESSAGE,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    TRAILERS,
    WATCH_OF_ETCD,
    WATCHED,
    WINDOW_UPDATE,
    Played,
    call,
    grpc,
    headers,
    number,
    odd_reply,
    plain_reply,
    settings,
    watched,
)

BLOCK = header_block([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"a")])
GREETING = settings(window=65535, frame=16384) + frame(WINDOW_UPDATE, 0, 0, number(1000))
REPLY = odd_reply()


def talking() -> Http2Protocol:
    """In the middle of its first call."""
    protocol = Http2Protocol("played:1")
    protocol.receive(settings())
    protocol.begin(BLOCK, b"", end=True)
    protocol.take_owed()
    return protocol


# ---- pieces


def test_a_reply_in_two_pieces_cut_anywhere() -> None:
    for position in range(len(REPLY) + 1):
        assert call(Played([GREETING, REPLY[:position], REPLY[position:]])) == MESSAGE
    for position in range(len(GREETING) + 1):
        channel = Played([GREETING[:position], GREETING[position:], REPLY])
        assert call(channel) == MESSAGE
        assert frame(SETTINGS, 1, 0, b"") in channel.sent


def test_a_reply_byte_by_byte() -> None:
    whole = GREETING + REPLY
    assert call(Played(whole[i : i + 1] for i in range(len(whole)))) == MESSAGE


@given(st.lists(st.integers(0, len(REPLY)), max_size=20))
def test_a_reply_in_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(REPLY)]
    assert call(Played([GREETING, *(REPLY[a:b] for a, b in pairwise(edges))])) == MESSAGE


def events_of(messages: list[bytes | None]) -> list[tuple[int, bytes, bytes]]:
    answers = [WatchResponse.FromString(message) for message in messages]
    return [(event.type, event.kv.key, event.kv.value) for answer in answers for event in answer.events]


def test_a_watch_of_etcd_in_two_pieces_cut_anywhere_and_byte_by_byte() -> None:
    said = WATCH_OF_ETCD
    for cut in range(len(said) + 1):
        channel = Played([ETCD_GREETS, said[:cut], said[cut:]])
        assert events_of(watched(channel)) == WATCHED
    for size in (1, 2, 3, 5, 7, 11, 50):
        channel = Played([ETCD_GREETS, *(said[i : i + size] for i in range(0, len(said), size))])
        assert events_of(watched(channel)) == WATCHED
        assert frame(PING, 1, 0, bytes.fromhex("02041010090e0707")) in channel.sent


def test_a_watch_of_etcd_that_breaks_off_anywhere_has_whole_messages_alone() -> None:
    whole = watched(Played([ETCD_GREETS, WATCH_OF_ETCD]))
    for cut in range(len(WATCH_OF_ETCD)):
        channel = Played([ETCD_GREETS, WATCH_OF_ETCD[:cut]], then_end=False)
        messages = watched(channel)
        got = [message for message in messages if message is not None]
        assert got == whole[: len(got)]
        assert messages[len(got) :] == [None] * (5 - len(got)), "none after one that isn't there yet"
        assert len(got) < 5
        assert channel.now == 1.0


def test_messages_that_frames_cut_anywhere() -> None:
    sent = [MESSAGE[:size] for size in (30, 0, 1, 200)]
    body = b"".join(map(grpc, sent))
    for size in range(1, 60):
        cut = [frame(DATA, 0, 1, body[start : start + size]) for start in range(0, len(body), size)]
        assert watched(Played([ETCD_GREETS, BEGINNING, *cut]), len(sent)) == sent
        assert watched(Played([ETCD_GREETS, BEGINNING + b"".join(cut)]), len(sent)) == sent


def test_a_reply_cut_short_anywhere_is_never_accepted() -> None:
    for position in range(len(REPLY)):
        with pytest.raises(ConnectionLost) as caught:
            call(Played([GREETING, REPLY[:position]]))
        assert caught.value.maybe_applied
        with pytest.raises(DeadlinePassed) as late:
            call(Played([GREETING, REPLY[:position]], then_end=False))
        assert late.value.maybe_applied


def test_two_replies_that_arrive_together_with_what_else_there_is() -> None:
    protocol = talking()
    protocol.receive(odd_reply())
    assert protocol.reply.only_message() == MESSAGE
    protocol.answer_pings()
    owed = protocol.begin(BLOCK, b"", end=True)
    assert frame(PING, 1, 0, b"pingping") in owed
    assert frame(SETTINGS, 1, 0, b"") in owed
    protocol.receive(plain_reply(b"second", stream=3))
    assert protocol.reply.only_message() == b"second"


# ---- rules

WRONG: dict[str, tuple[str, bytes]] = {
    "a frame larger than we allow": ("FRAME_SIZE_ERROR", frame(0xEE, 0, 0, bytes(16385))),
    "DATA on the connection": ("PROTOCOL_ERROR", frame(DATA, 0, 0, b"x")),
    "DATA on a stream of ours to come": ("PROTOCOL_ERROR", frame(DATA, 0, 3, b"x")),
    "DATA on a stream of the server's": ("PROTOCOL_ERROR", frame(DATA, 0, 2, b"x")),
    "DATA before HEADERS": ("PROTOCOL_ERROR", frame(DATA, 0, 1, b"x")),
    "DATA after the end": ("STREAM_CLOSED", BEGINNING + TRAILERS + frame(DATA, 0, 1, b"x")),
    "DATA with too much padding": ("PROTOCOL_ERROR", BEGINNING + frame(DATA, 8, 1, b"\x06abcde")),
    "DATA with padding and no length of it": ("PROTOCOL_ERROR", BEGINNING + frame(DATA, 8, 1, b"")),
    "HEADERS on the connection": ("PROTOCOL_ERROR", headers((":status", "200"), stream=0)),
    "HEADERS on another stream": ("PROTOCOL_ERROR", headers((":status", "200"), stream=5)),
    "HEADERS after the end": ("STREAM_CLOSED", BEGINNING + TRAILERS + TRAILERS),
    "HEADERS in the middle": ("PROTOCOL_ERROR", BEGINNING + BEGINNING),
    "HEADERS without a status": ("PROTOCOL_ERROR", headers(("x", "y"))),
    "HEADERS with an odd status": ("PROTOCOL_ERROR", headers((":status", "2000"))),
    "HEADERS with half a priority": ("FRAME_SIZE_ERROR", frame(HEADERS, 0x24, 1, b"abc")),
    "HEADERS that hpack can't read": ("COMPRESSION_ERROR", frame(HEADERS, 4, 1, b"\xff\xff\xff")),
    "1xx that ends": ("PROTOCOL_ERROR", headers((":status", "100"), flags=5)),
    "HEADERS that go on with something else": (
        "PROTOCOL_ERROR",
        frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)),
    ),
    "CONTINUATION of nothing": ("PROTOCOL_ERROR", frame(CONTINUATION, 4, 1, b"")),
    "CONTINUATION elsewhere": ("PROTOCOL_ERROR", frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 4, 3, b"")),
    "PRIORITY of another size": ("FRAME_SIZE_ERROR", frame(PRIORITY, 0, 1, bytes(4))),
    "PRIORITY of the connection": ("PROTOCOL_ERROR", frame(PRIORITY, 0, 0, bytes(5))),
    "RST_STREAM of another size": ("FRAME_SIZE_ERROR", frame(RST_STREAM, 0, 1, bytes(5))),
    "RST_STREAM of the connection": ("PROTOCOL_ERROR", frame(RST_STREAM, 0, 0, bytes(4))),
    "RST_STREAM of another stream": ("PROTOCOL_ERROR", frame(RST_STREAM, 0, 7, bytes(4))),
    "SETTINGS on a stream": ("PROTOCOL_ERROR", frame(SETTINGS, 0, 1, b"")),
    "SETTINGS that acknowledge and set": ("FRAME_SIZE_ERROR", frame(SETTINGS, 1, 0, bytes(6))),
    "half a setting": ("FRAME_SIZE_ERROR", frame(SETTINGS, 0, 0, bytes(5))),
    "a window that is too large": ("FLOW_CONTROL_ERROR", settings(window=2**31)),
    "a frame size that is too small": ("PROTOCOL_ERROR", settings(frame=16383)),
    "a frame size that is too large": ("PROTOCOL_ERROR", settings(frame=2**24)),
    "a server that sets push": ("PROTOCOL_ERROR", settings(push=1)),
    "a push": ("PROTOCOL_ERROR", frame(PUSH_PROMISE, 4, 1, number(2))),
    "PING of another size": ("FRAME_SIZE_ERROR", frame(PING, 0, 0, bytes(7))),
    "PING on a stream": ("PROTOCOL_ERROR", frame(PING, 0, 1, bytes(8))),
    "GOAWAY of another size": ("FRAME_SIZE_ERROR", frame(GOAWAY, 0, 0, bytes(7))),
    "GOAWAY on a stream": ("PROTOCOL_ERROR", frame(GOAWAY, 0, 1, bytes(8))),
    "WINDOW_UPDATE of another size": ("FRAME_SIZE_ERROR", frame(WINDOW_UPDATE, 0, 0, bytes(3))),
    "WINDOW_UPDATE of nothing": ("PROTOCOL_ERROR", frame(WINDOW_UPDATE, 0, 0, number(0))),
    "WINDOW_UPDATE of nothing on the stream": ("PROTOCOL_ERROR", frame(WINDOW_UPDATE, 0, 1, number(0))),
    "WINDOW_UPDATE of a stream to come": ("PROTOCOL_ERROR", frame(WINDOW_UPDATE, 0, 3, number(1))),
    "too large a window": ("FLOW_CONTROL_ERROR", frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1))),
    "too large a window on the stream": ("FLOW_CONTROL_ERROR", frame(WINDOW_UPDATE, 0, 1, number(2**31 - 1))),
}


@pytest.mark.parametrize("rule", WRONG)
def test_a_rule_that_the_server_breaks_ends_the_connection(rule: str) -> None:
    name, data = WRONG[rule]
    with pytest.raises(Http2Error, match=name):
        talking().receive(data)


def test_a_reserved_bit_is_ignored() -> None:
    protocol = talking()
    reserved = bytearray(plain_reply())
    reserved[5] |= 0x80
    protocol.receive(bytes(reserved))
    assert protocol.reply.only_message() == MESSAGE


def test_what_comes_late_on_a_cancelled_stream_is_ignored_and_counted() -> None:
    protocol = talking()
    protocol.receive(BEGINNING)
    assert protocol.cancel().endswith(frame(RST_STREAM, 0, 1, number(8)))
    protocol.begin(BLOCK, b"", end=True)
    late = frame(DATA, 0, 1, bytes(16384))
    for _ in range(OUR_WINDOW // 2 // 16384):
        protocol.receive(late)
    assert protocol.take_owed() == frame(WINDOW_UPDATE, 0, 0, number(OUR_WINDOW // 2))
    protocol.receive(TRAILERS + plain_reply(b"mine", stream=3))
    assert protocol.reply.only_message() == b"mine"


def test_late_trailers_change_the_table_that_the_next_reply_uses() -> None:
    server = Encoder()
    protocol = talking()
    server.encode([(":status", "200")])
    protocol.receive(BEGINNING)
    protocol.cancel()
    protocol.begin(BLOCK, b"", end=True)
    late = server.encode([("grpc-status", "0"), ("x", "late")])
    head = server.encode([(":status", "200"), ("content-type", "application/grpc")])
    trailers = server.encode([("grpc-status", "0")])
    assert len(trailers) == 1, "an index into the table"
    protocol.receive(frame(HEADERS, 5, 1, late) + frame(HEADERS, 4, 3, head))
    protocol.receive(frame(DATA, 0, 3, grpc(b"mine")) + frame(HEADERS, 5, 3, trailers))
    assert protocol.reply.only_message() == b"mine"


def test_trailers_that_are_continued() -> None:
    block = Encoder().encode([("grpc-status", "0"), ("grpc-message", "")])
    trailers = frame(HEADERS, 1, 1, block[:3]) + frame(CONTINUATION, 0, 1, b"") + frame(CONTINUATION, 4, 1, block[3:])
    protocol = talking()
    protocol.receive(BEGINNING + frame(DATA, 0, 1, grpc(MESSAGE)) + trailers[:-1])
    assert not protocol.reply.ended
    protocol.receive(trailers[-1:])
    assert protocol.reply.ended
    assert protocol.reply.only_message() == MESSAGE


def test_a_stream_that_both_sides_have_ended_is_not_reset() -> None:
    protocol = talking()
    protocol.receive(plain_reply())
    assert protocol.cancel() == b""


def test_a_status_in_the_first_headers_is_none() -> None:
    protocol = talking()
    lie = headers((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0"))
    protocol.receive(lie + frame(DATA, 1, 1, grpc(b"x")))
    with pytest.raises(Exception, match="without a status: does a proxy"):
        protocol.reply.only_message()


def test_a_status_with_more_digits_than_an_integer_may_have() -> None:
    protocol = talking()
    protocol.receive(headers((":status", "200"), ("grpc-status", "9" * 5000), flags=5))
    with pytest.raises(Exception, match="UNKNOWN"):
        protocol.reply.only_message()


def test_two_messages_are_not_one() -> None:
    protocol = talking()
    protocol.receive(BEGINNING + frame(DATA, 0, 1, grpc(b"x") + grpc(b"y")) + TRAILERS)
    with pytest.raises(Exception, match="more than whole messages"):
        protocol.reply.only_message()


# ---- floods

FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda i: frame(PING, 0, 0, number(i) * 2),
    "SETTINGS": lambda i: settings(window=65535 + i % 2),
    "empty DATA": lambda i: frame(DATA, 0, 1, b""),
    "padding alone": lambda i: frame(DATA, 8, 1, b"\x01\x00"),
    "PRIORITY": lambda i: frame(PRIORITY, 0, 1, number(0) + b"\x01"),
    "WINDOW_UPDATE": lambda i: frame(WINDOW_UPDATE, 0, 1, number(1)),
    "RST_STREAM": lambda i: frame(RST_STREAM, 0, 1, number(0)),
    "GOAWAY": lambda i: frame(GOAWAY, 0, 0, number(1) + number(0) + bytes(1000)),
    "unknown frames": lambda i: frame(0x77, 0, 0, bytes(100)),
}


def grows_no_more(protocol: Http2Protocol, frames: Callable[[int], bytes]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Http2Error, match="ENHANCE_YOUR_CALM"):
            deque((protocol.receive(frames(i)) for i in range(20_000)), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_ends_the_connection_with_bounded_memory(kind: str) -> None:
    protocol = talking()
    protocol.receive(BEGINNING)
    grows_no_more(protocol, FLOODS[kind])


@pytest.mark.parametrize("size", [0, 1, 16384])
def test_a_flood_of_continuations(size: int) -> None:
    protocol = talking()
    protocol.receive(frame(HEADERS, 0, 1, b""))
    grows_no_more(protocol, lambda i: frame(CONTINUATION, 0, 1, bytes(size)))


def test_pings_that_nothing_has_answered_are_bounded_whatever_comes_between_them() -> None:
    protocol = talking()
    protocol.receive(BEGINNING)
    grows_no_more(protocol, lambda i: frame(PING, 0, 0, number(i) * 2) * 9 + frame(DATA, 0, 1, b"x"))


def test_a_flood_of_interim_replies() -> None:
    grows_no_more(talking(), lambda i: headers((":status", "103")))


def test_a_page_without_end_is_not_kept() -> None:
    protocol = talking()
    protocol.receive(headers((":status", "502"), ("content-type", "text/html")))
    page = frame(DATA, 0, 1, b"<p>" * 5000)
    tracemalloc.start()
    try:
        for _ in range(2000):
            protocol.receive(page)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_more_data_than_our_window_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = talking()
    monkeypatch.setattr(protocol, "_owe", lambda update: None)
    protocol._connection_window._left = 10_000
    protocol.receive(BEGINNING)
    with pytest.raises(Http2Error, match="FLOW_CONTROL_ERROR"):
        protocol.receive(frame(DATA, 0, 1, bytes(10_001)))


# ---- flow control, with h2 as the other side

WINDOWS = st.integers(0, 40_000)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("window"), WINDOWS),
        st.tuples(st.just("frame"), st.sampled_from([16384, 20_000, 65_536])),
        st.tuples(st.just("connection"), st.integers(1, 100_000)),
        st.tuples(st.just("stream"), st.integers(1, 100_000)),
    ),
    max_size=30,
)


@given(size=st.integers(0, 300_000), first_window=WINDOWS, changes=CHANGES)
def test_a_request_of_any_size_passes_windows_that_change(
    size: int, first_window: int, changes: list[tuple[str, int]]
) -> None:
    server = H2Connection(H2Configuration(client_side=False))
    server.local_settings = Settings(client=False, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: first_window})
    server.initiate_connection()
    ours = Http2Protocol("h2:1")
    message = bytes(size)
    body, ended = bytearray(), False

    def to_server(data: bytes) -> None:
        nonlocal ended
        for event in server.receive_data(data):  # raises when we send more than it allows
            if isinstance(event, DataReceived):
                body.extend(event.data)
            ended = ended or isinstance(event, StreamEnded)

    def exchange() -> None:
        ours.receive(server.data_to_send())
        to_server(ours.take_owed())

    to_server(PREFACE)
    exchange()
    to_server(ours.begin(BLOCK, message, end=True))
    for kind, value in [*changes, ("connection", 400_000), ("stream", 400_000), ("window", 40_000)]:
        while part := ours.next_part() if ours.unsent else b"":
            to_server(part)
        if kind in ("window", "frame"):
            code = SettingCodes.INITIAL_WINDOW_SIZE if kind == "window" else SettingCodes.MAX_FRAME_SIZE
            server.update_settings({code: value})
        else:
            if not ended or kind == "connection":
                server.increment_flow_control_window(value, None if kind == "connection" else 1)
        exchange()
    while ours.unsent:
        part = ours.next_part()
        assert part, "there is room, and nothing is sent"
        to_server(part)
    assert ended
    assert bytes(body) == grpc(message)


@pytest.mark.parametrize("end", [plain_reply(), b""], ids=["ended", "cancelled"])
def test_the_window_of_a_stream_that_is_over_moves_no_more(end: bytes) -> None:
    protocol = talking()
    nearly_all = frame(WINDOW_UPDATE, 0, 1, number(2**31 - 65_531))
    protocol.receive(nearly_all + end)
    protocol.cancel()
    protocol.receive(settings(window=65_536) + nearly_all)
    protocol.begin(BLOCK, b"", end=True)
    protocol.receive(frame(WINDOW_UPDATE, 0, 3, number(2**31 - 1 - 65_536)))
    with pytest.raises(Http2Error, match="FLOW_CONTROL_ERROR"):
        protocol.receive(frame(WINDOW_UPDATE, 0, 3, number(6)))


def test_padding_takes_its_share_of_both_windows() -> None:
    protocol = talking()
    protocol.take_owed()
    protocol.receive(BEGINNING)
    one = frame(DATA, 8, 1, b"\xff" + bytes(256))
    for _ in range(OUR_WINDOW // 2 // 257 + 1):
        protocol.receive(one)
    owed = protocol.take_owed()
    for stream_id in (0, 1):
        (given,) = [owed[at + 9 : at + 13] for at in (0, 13) if owed[at + 5 : at + 9] == number(stream_id)]
        assert int.from_bytes(given, "big") >= OUR_WINDOW // 2


def test_a_token_that_is_longer_than_a_frame() -> None:
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.decoder.max_header_list_size = 1 << 20
    server.initiate_connection()
    ours = Http2Protocol("h2:1")
    server.receive_data(PREFACE)
    ours.receive(server.data_to_send())
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"a")]
    fields.append((b"token", b"t" * 40_000))
    (request, *_) = server.receive_data(ours.begin(header_block(fields), b"", end=True))[1:]
    assert dict(request.headers)[b"token"] == b"t" * 40_000


def test_no_streams_allowed() -> None:
    protocol = Http2Protocol("played:1")
    protocol.receive(settings(streams=0))
    assert not protocol.streams_allowed
    protocol.receive(settings(streams=1))
    assert protocol.streams_allowed


def test_our_preface_is_what_it_should_be() -> None:
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(PREFACE)
    assert server.remote_settings.header_table_size == 0
    assert server.remote_settings.enable_push == 0
    assert server.remote_settings.initial_window_size == OUR_WINDOW
    assert server.outbound_flow_control_window == OUR_WINDOW
    assert server.remote_settings.max_header_list_size == LARGEST_LIST_BYTES


def test_the_answers_to_pings_wait_until_they_are_called_for() -> None:
    protocol = talking()
    protocol.receive(frame(PING, 0, 0, b"pingping"))
    assert not protocol.must_send
    assert protocol.take_owed() == b""
    protocol.answer_pings()
    assert protocol.must_send
    assert protocol.take_owed() == frame(PING, 1, 0, b"pingping")
    assert protocol.take_owed() == b""
