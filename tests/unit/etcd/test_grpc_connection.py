"""One connection against a server that misbehaves in every way we know."""

from __future__ import annotations

import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable

import pytest
from h2.connection import H2Connection
from h2.settings import SettingCodes

from celery_etcdlock.etcd import grpc_connection
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    EtcdError,
    EtcdStatusError,
    LeaseNotFound,
    NoSpace,
    NotEtcd,
    NotProcessed,
    PermissionDenied,
    StatusCode,
)
from celery_etcdlock.etcd.request_headers import request_headers
from celery_etcdlock.etcd.sockets import NotAllSent, PolledChannel
from tests.unit.etcd import scripted_server
from tests.unit.etcd.recorded import Played, call
from tests.unit.etcd.scripted_server import ScriptedServer, Session, echo

OURS = [tracemalloc.Filter(True, "*/celery_etcdlock/etcd/*")]
PATH = "/etcdserverpb.KV/Txn"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_unary_calls_share_one_connection() -> None:
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        assert [client.call(PATH, b"%d" % i, 5) for i in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert client.call(PATH, b"", 5) == b""
        assert server.connections == 1
        client.close()


def test_a_connection_does_not_grow_with_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    class SmallServerSide(H2Connection):
        MAX_CLOSED_STREAMS = 1

    monkeypatch.setattr(scripted_server, "H2Connection", SmallServerSide)
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        for _ in range(200):
            client.call(PATH, b"", 5)
        assert server.connections == 1
        tracemalloc.start()
        try:
            for _ in range(100):
                client.call(PATH, b"", 5)
            before = tracemalloc.take_snapshot().filter_traces(OURS)
            for _ in range(400):
                client.call(PATH, b"", 5)
            after = tracemalloc.take_snapshot().filter_traces(OURS)
        finally:
            tracemalloc.stop()
        client.close()
    grown = sum(difference.size_diff for difference in after.compare_to(before, "filename"))
    # A closed stream that is kept in mind takes 140 bytes; Python 3.10 keeps frames of what it called, some 20 kB.
    assert grown < 40_000, f"{grown} bytes more after 400 calls"


def test_headers_that_etcd_needs() -> None:
    seen: dict[bytes, bytes] = {}

    def script(session: Session) -> None:
        stream_id = session.request()
        seen.update(session.headers[stream_id])
        session.answer(stream_id, b"")

    with ScriptedServer(script) as server:
        EtcdClient(server.endpoint).call(PATH, b"", 2.5)
        assert seen[b":path"] == PATH.encode()
        assert seen[b"te"] == b"trailers"
        assert seen[b":authority"] == server.endpoint.encode()
        assert seen[b"hasleader"] == b"true"
        assert seen[b"grpc-timeout"].endswith(b"m")
        assert 2500 < int(seen[b"grpc-timeout"][:-1]) <= 3600  # later than our own, which is the one that counts


def test_large_reply_and_request_pass_flow_control() -> None:
    large = bytes(range(256)) * 4096 * 20  # 20 MiB: more than any window
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        assert client.call(PATH, large, 60) == large
        assert server.window_updates > 0
        assert client.call(PATH, b"again", 5) == b"again"
        assert server.connections == 1


def test_request_that_is_refused_before_it_is_read() -> None:
    def script(session: Session) -> None:
        session.send_headers(
            session.request_headers(), ("grpc-status", "3"), ("grpc-message", "request is too large"), end=True
        )
        session.until_closed()

    with ScriptedServer(script) as server, pytest.raises(EtcdStatusError, match="request is too large") as caught:
        EtcdClient(server.endpoint).call(PATH, b"x" * 10_000_000, 5)
    assert not caught.value.maybe_applied


def test_trailers_only_reply_with_an_encoded_message() -> None:
    def script(session: Session) -> None:
        while True:
            session.send_headers(
                session.request(),
                ("grpc-status", "5"),
                ("grpc-message", "etcdserver: requested lease not found %E2%80%94 50%25"),
                end=True,
            )

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        for _ in range(2):
            with pytest.raises(LeaseNotFound) as caught:
                client.call(PATH, b"", 5)
            assert caught.value.details == "etcdserver: requested lease not found — 50%"
            assert not caught.value.maybe_applied
        assert server.connections == 1, "a clean refusal leaves the connection usable"


@pytest.mark.parametrize(
    ("code", "details", "kind", "maybe", "permanent"),
    [
        (14, "etcdserver: request timed out", EtcdStatusError, True, False),
        (2, "odd", EtcdStatusError, True, False),
        (10, "odd", EtcdStatusError, True, False),
        (13, "odd", EtcdStatusError, True, False),
        (99, "odd", EtcdStatusError, True, False),
        (7, "etcdserver: permission denied", PermissionDenied, False, True),
        (8, "etcdserver: mvcc: database space exceeded", NoSpace, False, False),
        (3, "etcdserver: duplicate key given in txn request", EtcdStatusError, False, False),
    ],
)
def test_status(code: int, details: str, kind: type[EtcdError], maybe: bool, permanent: bool) -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.send_trailers(stream_id, code, details)

    with ScriptedServer(script) as server, pytest.raises(kind) as caught:
        EtcdClient(server.endpoint).call(PATH, b"", 5)
    assert type(caught.value) is kind
    assert (caught.value.maybe_applied, caught.value.permanent) == (maybe, permanent)
    assert server.endpoint in str(caught.value)
    assert details in str(caught.value)


def test_goaway_that_excludes_us_is_repeated() -> None:
    def refuse(session: Session) -> None:
        stream_id = session.request()
        session.goaway(stream_id - 2 if stream_id > 1 else 0, b"moving")
        session.until_closed()

    with ScriptedServer(refuse, echo) as server:
        assert EtcdClient(server.endpoint).call(PATH, b"x", 5) == b"x"
        assert (server.connections, server.requests) == (2, 2)


def test_goaway_to_the_end_is_not_processed() -> None:
    def refuse(session: Session) -> None:
        session.request()
        session.goaway(0, b"moving")
        session.until_closed()

    with ScriptedServer(refuse) as server:
        deadline = time.monotonic() + 10
        client = EtcdClient(server.endpoint)
        connection = client._pool.connect(deadline)
        with pytest.raises(NotProcessed, match="moving") as caught:
            connection.call(request_headers("http", server.endpoint, PATH, 10, ""), b"x", deadline)
        assert not caught.value.maybe_applied
        assert not connection.reusable


def test_goaway_that_includes_us_lets_the_call_finish_and_retires_the_connection() -> None:
    def polite(session: Session) -> None:
        stream_id = session.request()
        session.goaway(2**31 - 1)
        session.goaway(stream_id)
        session.answer(stream_id, b"done")
        session.until_closed()

    with ScriptedServer(polite, echo) as server:
        client = EtcdClient(server.endpoint)
        assert client.call(PATH, b"x", 5) == b"done"
        assert client.call(PATH, b"y", 5) == b"y"
        assert (server.connections, server.requests) == (2, 2)


def test_goaway_while_idle_is_noticed_before_anything_is_sent() -> None:
    told, go = threading.Event(), threading.Event()

    def leave(session: Session) -> None:
        session.answer(session.request(), b"first")
        go.wait(10)
        session.goaway(1)
        told.set()
        session.until_closed()

    with ScriptedServer(leave, echo) as server:
        client = EtcdClient(server.endpoint)
        assert client.call(PATH, b"", 5) == b"first"
        go.set()
        assert told.wait(10)
        assert client.call(PATH, b"second", 5) == b"second"
        assert server.requests == 2


def test_connection_that_the_server_closed_while_idle() -> None:
    def once(session: Session) -> None:
        session.answer(session.request(), b"first")

    with ScriptedServer(once, echo) as server:
        client = EtcdClient(server.endpoint)
        assert client.call(PATH, b"", 5) == b"first"
        (idle,) = client._pool.idle
        wait_until(lambda: not idle.still_alive())
        assert client.call(PATH, b"second", 5) == b"second"
        assert server.requests == 2


def test_refused_stream_is_repeated() -> None:
    def refuse(session: Session) -> None:
        session.h2.reset_stream(session.request(), error_code=7)
        session.flush()
        session.until_closed()

    with ScriptedServer(refuse, echo) as server:
        assert EtcdClient(server.endpoint).call(PATH, b"x", 5) == b"x"
        assert server.connections == 2


def test_other_reset_may_have_been_applied_and_is_not_repeated() -> None:
    def reset(session: Session) -> None:
        session.h2.reset_stream(session.request(), error_code=2)
        session.flush()
        session.until_closed()

    with ScriptedServer(reset, echo) as server:
        with pytest.raises(ConnectionLost, match="INTERNAL_ERROR") as caught:
            EtcdClient(server.endpoint).call(PATH, b"x", 5)
        assert caught.value.maybe_applied
        assert server.requests == 1


def test_lost_reply_may_have_been_applied_and_only_reads_are_repeated() -> None:
    def lose(session: Session) -> None:
        session.request()

    with ScriptedServer(lose, echo) as server:
        client = EtcdClient(server.endpoint)
        with pytest.raises(ConnectionLost) as caught:
            client.call(PATH, b"x", 5)
        assert caught.value.maybe_applied
        assert server.requests == 1
    with ScriptedServer(lose, echo) as server:
        assert EtcdClient(server.endpoint).call(PATH, b"x", 5, repeatable=True) == b"x"
        assert server.requests == 2


def test_half_open_connection_ends_at_the_deadline_and_is_not_used_again() -> None:
    def silent(session: Session) -> None:
        session.request()
        session.until_closed()

    with ScriptedServer(silent, echo) as server:
        client = EtcdClient(server.endpoint)
        with pytest.raises(DeadlinePassed) as caught:
            client.call(PATH, b"x", 0.2)
        assert caught.value.maybe_applied
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 2


def test_request_that_was_not_sent_whole_is_not_applied() -> None:
    def stuffed(session: Session) -> None:
        threading.Event().wait(0.5)  # grants no window, reads nothing

    with ScriptedServer(stuffed) as server, pytest.raises(EtcdError) as caught:
        EtcdClient(server.endpoint).call(PATH, b"x" * 30_000_000, 0.2)
    assert not caught.value.maybe_applied


def test_exception_from_a_signal_handler_never_returns_the_connection() -> None:
    class Interrupted(BaseException):
        pass

    def handler(*_: object) -> None:
        raise Interrupted

    def slow(session: Session) -> None:
        stream_id = session.request()
        signal.pthread_kill(main, signal.SIGUSR1)
        session.answer(stream_id, b"late")
        session.until_closed()

    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ScriptedServer(slow, echo) as server:
            client = EtcdClient(server.endpoint)
            with pytest.raises(Interrupted):
                client.call(PATH, b"x", 5)
            assert not client._pool.idle
            assert client.call(PATH, b"y", 5) == b"y"
            assert server.connections == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("status", ["502", "503", "504"])
def test_http_status_of_a_proxy(status: str) -> None:
    def proxy(session: Session) -> None:
        session.h2.send_headers(session.request(), [(":status", status)], end_stream=True)
        session.flush()
        session.until_closed()

    with ScriptedServer(proxy) as server, pytest.raises(EtcdStatusError) as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.maybe_applied


def test_http2_server_that_is_not_etcd() -> None:
    def web(session: Session) -> None:
        stream_id = session.request()
        session.h2.send_headers(stream_id, [(":status", "404"), ("content-type", "text/html")])
        session.h2.send_data(stream_id, b"<html>", end_stream=True)
        session.flush()
        session.until_closed()

    with ScriptedServer(web) as server, pytest.raises(NotEtcd, match="is this etcd's client port") as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.permanent
    assert not caught.value.maybe_applied


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"400 Bad Request\r\n\r\n", r"speaks HTTP/1 \(HTTP/1.1 400 Bad Request\), or wants TLS \(https://\): is this"),
        (
            b"400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port",
            "the server wants TLS: write https://",
        ),
        (b"502 Bad Gateway\r\n\r\n<html>", r"speaks HTTP/1 \(HTTP/1.1 502 Bad Gateway\): is this etcd's client port"),
        (b"503 Service Unavailable\r\n\r\n<html>", r"HTTP/1 \(HTTP/1.1 503 Service Unavailable\): is this etcd's"),
        (b"", r"speaks HTTP/1 \(HTTP/1.1 \): is this etcd's client port"),
    ],
)
def test_http1_server(said: bytes, message: str) -> None:
    def web(session: Session) -> None:
        session.sock.recv(100)
        session.sock.sendall(b"HTTP/1.1 " + said)
        session.until_closed()

    started = time.monotonic()
    with ScriptedServer(web, raw=True) as server, pytest.raises(NotEtcd, match=message) as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert time.monotonic() - started < 4, "nothing is waited for"
    assert caught.value.permanent
    assert not caught.value.maybe_applied


def test_tls_server_behind_plain_settings() -> None:
    def tls(session: Session) -> None:
        session.sock.recv(100)
        session.sock.sendall(b"\x15\x03\x01\x00\x02\x02\x16")
        session.until_closed()

    with ScriptedServer(tls, raw=True) as server, pytest.raises(NotEtcd, match="etcdlock_ca_cert"):
        EtcdClient(server.endpoint).call(PATH, b"x", 5)


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"SSH-2.0-OpenSSH_9\r\n", b"+OK redis ready\r\n", b"\xff" * 9])
def test_garbage(garbage: bytes) -> None:
    def speak(session: Session) -> None:
        session.sock.sendall(garbage)
        session.until_closed()

    with ScriptedServer(speak, raw=True) as server, pytest.raises(ConnectFailed, match="client port"):
        EtcdClient(server.endpoint).call(PATH, b"x", 1)


def test_server_that_says_nothing_at_all() -> None:
    started = time.monotonic()
    with (
        ScriptedServer(Session.until_closed, raw=True) as server,
        pytest.raises(ConnectFailed, match="no HTTP/2 settings came in time") as caught,
    ):
        EtcdClient(server.endpoint).call(PATH, b"x", 0.2)
    assert 0.1 < time.monotonic() - started < 2
    assert not caught.value.maybe_applied


@pytest.mark.parametrize("body", [b"\1\0\0\0\1x", b"\0\xff\xff\xff\xffx", b"\0\0\0\0\x09short", b""])
def test_malformed_messages(body: bytes) -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.h2.send_data(stream_id, body)
        session.send_trailers(stream_id)

    with ScriptedServer(script) as server, pytest.raises(EtcdError) as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.maybe_applied


def test_end_without_a_status() -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id, end=True)

    with ScriptedServer(script) as server, pytest.raises(EtcdError, match="without a status") as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.maybe_applied


def test_reply_in_tiny_pieces_with_pings_and_unknown_frames() -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        whole = bytearray()
        session.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        session.h2.ping(b"12345678")
        whole += session.h2.data_to_send()
        whole += b"\0\0\x03\xee\0\0\0\0\0abc"  # a frame type from the future
        session.h2.send_data(stream_id, b"\0\0\0\0\x02hi")
        session.h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        whole += session.h2.data_to_send()
        session.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(whole)):
            session.sock.sendall(whole[position : position + 1])
        echo(session)

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        assert client.call(PATH, b"x", 5) == b"hi"
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 1


def test_stream_of_messages_then_the_end() -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        for number in range(3):
            session.send_message(stream_id, b"%d" % number)
        session.send_trailers(stream_id)
        session.until_closed()

    with ScriptedServer(script) as server, EtcdClient(server.endpoint).stream(PATH, b"", 5) as stream:
        assert list(stream) == [b"0", b"1", b"2"]
        assert stream.ended


def test_stream_waits_in_slices_and_ends_with_an_error() -> None:
    go = threading.Event()

    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        go.wait(10)
        session.send_message(stream_id, b"late")
        session.send_trailers(stream_id, 14, "etcdserver: no leader")
        session.until_closed()

    with ScriptedServer(script) as server, EtcdClient(server.endpoint).stream(PATH, b"", 10) as stream:
        assert stream.receive(0.05) is None
        assert stream.receive(0) is None
        go.set()
        assert stream.receive(10) == b"late"
        with pytest.raises(EtcdStatusError, match="no leader"):
            next(stream)


def test_stream_ends_at_its_deadline() -> None:
    with (
        ScriptedServer(Session.until_closed) as server,
        EtcdClient(server.endpoint).stream(PATH, b"", 0.2) as stream,
        pytest.raises(DeadlinePassed),
    ):
        next(stream)


def test_stream_is_cancelled_from_another_thread() -> None:
    with (
        ScriptedServer(Session.until_closed) as server,
        EtcdClient(server.endpoint).stream(PATH, b"", 60) as stream,
    ):
        threading.Timer(0.1, stream.cancel).start()
        with pytest.raises(ConnectionLost):
            next(stream)


def test_silent_server_is_pinged_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "PING_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(grpc_connection, "PONG_WITHIN_SECONDS", 0.3)
    with (
        ScriptedServer(Session.until_closed) as server,
        EtcdClient(server.endpoint).stream(PATH, b"", 60) as stream,
        pytest.raises(ConnectionLost, match="no answer to a ping"),
    ):
        next(stream)


def test_quiet_server_that_answers_pings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "PING_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(grpc_connection, "PONG_WITHIN_SECONDS", 5)

    def quiet(session: Session) -> None:
        while True:
            session.pump()

    with ScriptedServer(quiet) as server, EtcdClient(server.endpoint).stream(PATH, b"", 60) as stream:
        assert stream.receive(0.5) is None


def test_pings_are_answered_once_a_second_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "PONGS_APART_SECONDS", 60.0)
    pongs: list[int] = []

    def measuring(session: Session) -> None:
        for number in range(5):
            stream_id = session.request()
            session.h2.ping(b"%08d" % number)
            session.answer(stream_id, b"")
            pongs.append(session.pongs)

    with ScriptedServer(measuring) as server:
        client = EtcdClient(server.endpoint)
        for _ in range(4):
            client.call(PATH, b"", 5)
        (idle,) = client._pool.idle
        idle._pongs_at = 0.0
        client.call(PATH, b"", 5)
        client.close()
    assert max(pongs[:4]) <= 1, "the first one alone"
    assert pongs[4] >= 4


def test_a_ping_soon_after_an_answered_one_is_answered_while_the_call_still_waits() -> None:
    answered_after: list[float] = []

    def pinging(session: Session) -> None:
        stream_id = session.request()
        for number in (1, 2):
            asked = time.monotonic()
            session.h2.ping(b"%08d" % number)
            session.flush()
            while session.pongs < number:
                session.pump()
            answered_after.append(time.monotonic() - asked)
        session.answer(stream_id, b"")

    with ScriptedServer(pinging) as server:
        assert EtcdClient(server.endpoint).call(PATH, b"", 5) == b""
    first, second = answered_after
    assert first < 0.5
    assert 0.5 < second < 2.5, "once a second"


def until_reset(session: Session, stream_id: int) -> None:
    while stream_id not in session.reset:
        session.pump()


def test_a_stream_that_is_left_gives_its_connection_to_the_next_call() -> None:
    def script(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.send_message(stream_id, b"event")
        until_reset(session, stream_id)
        late = b"\0\0\x05\0\0" + stream_id.to_bytes(4, "big") + b"\0\0\0\0\0"
        session.sock.sendall(late * 3 + b"\0\0\0\0\1" + stream_id.to_bytes(4, "big"))
        echo(session)

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        with client.stream(PATH, b"", 20) as stream:
            assert next(stream) == b"event"
        assert client.call(PATH, b"x", 5) == b"x"
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 1
        client.close()


def test_a_stream_that_timed_out_gives_its_connection_back() -> None:
    def script(session: Session) -> None:
        until_reset(session, session.request())
        echo(session)

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        with client.stream(PATH, b"", 0.2) as stream, pytest.raises(DeadlinePassed):
            next(stream)
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 1
        client.close()


def test_a_stream_that_was_cancelled_or_interrupted_keeps_its_connection_to_itself() -> None:
    class Interrupted(BaseException):
        pass

    def interrupted(deadline: float) -> bytes:
        raise Interrupted

    with ScriptedServer(Session.until_closed) as server:
        client = EtcdClient(server.endpoint)
        with client.stream(PATH, b"", 20) as stream:
            stream.cancel()
        assert not client._pool.idle
        with client.stream(PATH, b"", 20) as stream:
            stream._cancelled = True  # by a thread that hasn't come to interrupt the connection yet
        assert not client._pool.idle
        with client.stream(PATH, b"", 20) as stream:
            assert stream._connection is not None
            stream._connection._channel.receive = interrupted  # type: ignore[method-assign]
            with pytest.raises(Interrupted):
                next(stream)
        assert not client._pool.idle
        client.close()


def test_a_keepalive_leaves_our_side_open_and_the_connection_usable() -> None:
    ended: list[bool] = []

    def script(session: Session) -> None:
        stream_id = session.request_headers()
        while len(session.bodies[stream_id]) < 10:
            session.pump()
        ended.append(bool(session._ended))
        session.send_headers(stream_id)
        session.send_message(stream_id, b"alive")
        until_reset(session, stream_id)
        echo(session)

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        assert client.call("/etcdserverpb.Lease/LeaseKeepAlive", b"12345", 5) == b"alive"
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 1
        client.close()
    assert ended == [False]


def test_a_keepalive_that_is_refused() -> None:
    def script(session: Session) -> None:
        stream_id = session.request_headers()
        lost = ("grpc-message", "etcdserver: requested lease not found")
        session.send_headers(stream_id, ("grpc-status", "5"), lost, end=True)
        until_reset(session, stream_id)
        echo(session)

    with ScriptedServer(script) as server:
        client = EtcdClient(server.endpoint)
        with pytest.raises(LeaseNotFound):
            client.call("/etcdserverpb.Lease/LeaseKeepAlive", b"", 5)
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 1


def test_a_request_that_the_kernel_did_not_take_whole_is_not_applied() -> None:
    class Full(Played):
        def send(self, data: bytes, deadline: float) -> None:
            if b"request" in data:
                raise NotAllSent("deadline passed")

    with pytest.raises(DeadlinePassed) as caught:
        call(Full([b"\0\0\0\x04\0\0\0\0\0"], then_end=False), b"request")
    assert not caught.value.maybe_applied

    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = PolledChannel(ours)
        with pytest.raises(NotAllSent):
            channel.send(bytes(50_000_000), time.monotonic() + 0.05)


@pytest.mark.parametrize("status", ["502", "503"])
def test_a_load_balancer_that_answers_with_a_page(status: str) -> None:
    def balancer(session: Session) -> None:
        stream_id = session.request()
        session.h2.send_headers(stream_id, [(":status", status), ("content-type", "text/html")])
        session.h2.send_data(stream_id, b"<html>" * 1000, end_stream=True)
        session.flush()
        session.until_closed()

    with ScriptedServer(balancer) as server, pytest.raises(EtcdStatusError, match=f"HTTP status {status}") as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.maybe_applied


def test_a_page_that_does_not_end_is_named_at_the_deadline() -> None:
    def balancer(session: Session) -> None:
        stream_id = session.request()
        session.h2.send_headers(stream_id, [(":status", "502"), ("content-type", "text/html")])
        while True:
            session.h2.send_data(stream_id, b"<html>")
            session.flush()
            time.sleep(0.01)

    started = time.monotonic()
    with ScriptedServer(balancer) as server, pytest.raises(DeadlinePassed, match="half a page with HTTP status 502"):
        EtcdClient(server.endpoint).call(PATH, b"x", 0.5)
    assert 0.4 < time.monotonic() - started < 2


def test_a_proxy_that_drops_trailers_is_named() -> None:
    def proxy(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.h2.send_data(stream_id, b"\0\0\0\0\2ok", end_stream=True)
        session.flush()
        session.until_closed()

    with ScriptedServer(proxy) as server, pytest.raises(EtcdError, match="does a proxy before it drop HTTP/2 trailers"):
        EtcdClient(server.endpoint).call(PATH, b"x", 5)


def test_a_server_that_answers_on_another_stream() -> None:
    def lost(session: Session) -> None:
        session.request()
        session.sock.sendall(b"\0\0\1\1\5\0\0\0\7\x88")
        session.until_closed()

    with (
        ScriptedServer(lost) as server,
        pytest.raises(ConnectionLost, match="stream 7, which we didn't open") as caught,
    ):
        EtcdClient(server.endpoint).call(PATH, b"x", 5)
    assert caught.value.maybe_applied


def test_half_a_frame_and_then_silence() -> None:
    def silent(session: Session) -> None:
        session.request()
        session.sock.sendall(b"\0\0\x10\1\4\0\0\0\1\x88")
        session.until_closed()

    started = time.monotonic()
    with ScriptedServer(silent) as server, pytest.raises(DeadlinePassed) as caught:
        EtcdClient(server.endpoint).call(PATH, b"x", 0.3)
    assert 0.2 < time.monotonic() - started < 2
    assert caught.value.maybe_applied


def test_a_server_that_allows_no_streams_is_tried_again_and_then_named() -> None:
    def closed(session: Session) -> None:
        session.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0})
        session.flush()
        session.until_closed()

    with ScriptedServer(closed, echo) as server:
        client = EtcdClient(server.endpoint)
        connection = client._pool.connect(time.monotonic() + 5)
        wait_until(lambda: connection.still_alive() and not connection._protocol.streams_allowed)
        with pytest.raises(NotProcessed, match="allows no calls at present"):
            connection.call(b"", b"x", time.monotonic() + 5)
        assert client.call(PATH, b"x", 5) == b"x"
