"""When a connection carries the next call, and what a server may do in the middle of one."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from h2.settings import SettingCodes

from celery_etcdlock.etcd import grpc_connection, grpc_reply
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import ConnectionLost, EtcdError, EtcdStatusError, NotProcessed
from celery_etcdlock.etcd.frames import frame
from celery_etcdlock.etcd.messages import KEEP_ALIVE
from tests.unit.etcd.recorded import (
    BEGINNING,
    DATA,
    GOAWAY,
    PING,
    TRAILERS,
    Played,
    call,
    grpc,
    headers,
    number,
    opened,
    plain_reply,
    settings,
    watched,
)
from tests.unit.etcd.scripted_server import ScriptedServer, Session, echo

PATH = "/etcdserverpb.KV/Txn"


# ---- the next call


def test_a_connection_whose_streams_run_out_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "LAST_STREAM_ID", 5)
    streams: list[int] = []

    def counting(session: Session) -> None:
        while True:
            streams.append(session.request())
            session.answer(streams[-1], b"")

    with ScriptedServer(counting) as server:
        client = EtcdClient(server.endpoint)
        for _ in range(7):
            client.call(PATH, b"", 5)
        client.close()
    assert streams == [1, 3, 5, 1, 3, 5, 1]


def test_a_server_that_allows_one_stream_gets_one_at_a_time() -> None:
    def strict(session: Session) -> None:
        """h2 raises when a second stream is opened."""
        while True:
            stream_id = session.request_headers()
            while not session.bodies[stream_id]:
                session.pump()
            session.send_headers(stream_id)
            session.send_message(stream_id, b"event")
            if session.headers[stream_id][b":path"] == PATH.encode():
                session.send_trailers(stream_id)
            while len(session.headers) == 1:
                session.pump()
            del session.headers[stream_id]

    with ScriptedServer(strict, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1}) as server:
        client = EtcdClient(server.endpoint)
        for _ in range(3):
            assert client.call(PATH, b"x", 5) == b"event"
            assert client.call(KEEP_ALIVE, b"x", 5) == b"event"
            with client.stream("/etcdserverpb.Watch/Watch", b"x", 5) as stream:
                assert next(stream) == b"event"
        assert server.connections == 1
        client.close()


@pytest.mark.parametrize("size", [0, 100])
def test_a_server_with_another_table_of_headers(size: int) -> None:
    """h2 raises when a block doesn't begin with the change of the table's size."""
    with ScriptedServer(echo, settings={SettingCodes.HEADER_TABLE_SIZE: size}) as server:
        client = EtcdClient(server.endpoint)
        assert [client.call(PATH, b"%d" % i, 5 + i) for i in range(3)] == [b"0", b"1", b"2"]
        assert server.connections == 1
        client.close()


def test_a_request_that_is_refused_half_way_takes_its_connection_with_it() -> None:
    def refuse(session: Session) -> None:
        session.send_headers(session.request_headers(), ("grpc-status", "3"), ("grpc-message", "too large"), end=True)
        session.until_closed()

    with ScriptedServer(refuse, echo) as server:
        client = EtcdClient(server.endpoint)
        with pytest.raises(EtcdStatusError, match="too large"):
            client.call(PATH, b"x" * 1_000_000, 5)
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 2


@pytest.mark.parametrize("wrong", [b"\0\0\1\0\0\0\0\0\3x", b"\0\0\0\4\0\0\0\0\1", b"\0\0\1\1\4\0\0\0\1\xff"])
def test_a_server_that_breaks_the_protocol_in_a_call_gets_no_other_on_that_connection(wrong: bytes) -> None:
    def broken(session: Session) -> None:
        stream_id = session.request()
        session.sock.sendall(wrong)
        session.answer(stream_id, b"late")
        session.until_closed()

    with ScriptedServer(broken, echo) as server:
        client = EtcdClient(server.endpoint)
        with pytest.raises(ConnectionLost, match="broke the HTTP/2 protocol") as caught:
            client.call(PATH, b"x", 5)
        assert caught.value.maybe_applied
        assert not client._pool.idle
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 2


class Died(BaseException):
    pass


def kill(thread: threading.Thread) -> None:
    """As celery's thread pool and our ``on_lock_lost`` do it."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Died))


def dies_of(work: Callable[[], object]) -> threading.Thread:
    begun = threading.Event()

    def body() -> None:
        with suppress(Died):
            begun.set()
            work()

    thread = threading.Thread(target=body)
    thread.start()
    assert begun.wait(10)
    return thread


def test_a_thread_that_dies_while_it_waits_for_its_answer_takes_its_connection_with_it() -> None:
    asked, killed = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        stream_id = session.request()
        asked.set()
        killed.wait(10)
        session.answer(stream_id, b"late")
        session.until_closed()

    with ScriptedServer(slow, echo) as server:
        client = EtcdClient(server.endpoint)
        thread = dies_of(lambda: client.call(PATH, b"x", 10))
        assert asked.wait(10)
        kill(thread)
        killed.set()
        thread.join(10)
        assert not client._pool.idle
        assert client.call(PATH, b"y", 5) == b"y"
        assert server.connections == 2
        client.close()


def test_threads_that_die_anywhere_in_a_call_leave_no_answer_to_another() -> None:
    chance = random.Random(1)
    wrong: list[tuple[bytes, bytes]] = []

    def calls(client: EtcdClient, first: int) -> None:
        for request in range(first, first + 100_000):
            reply = client.call(PATH, b"%d" % request, 10)
            if reply != b"%d" % request:
                wrong.append((b"%d" % request, reply))

    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        for number_of_thread in range(60):
            thread = dies_of(lambda first=number_of_thread * 100_000: calls(client, first))
            time.sleep(chance.uniform(0.001, 0.01))
            kill(thread)
            thread.join(10)
            assert not thread.is_alive()
            assert client.call(PATH, b"mine", 10) == b"mine"
        client.close()
    assert not wrong
    assert server.connections > 1, "some died in the middle"


# ---- in the middle of a call


def test_settings_are_answered_while_the_call_waits() -> None:
    def waits(session: Session) -> None:
        stream_id = session.request()
        before = session.settings_answered
        session.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
        session.flush()
        while session.settings_answered == before:
            session.pump()
        session.answer(stream_id, b"answered")

    with ScriptedServer(waits) as server:
        assert EtcdClient(server.endpoint).call(PATH, b"", 5) == b"answered"


def test_a_goaway_after_another_takes_nothing_back() -> None:
    goaways = frame(GOAWAY, 0, 0, number(0) + number(0)) + frame(GOAWAY, 0, 0, number(2**31 - 1) + number(0))
    with pytest.raises(NotProcessed):
        call(Played([settings(), goaways, plain_reply()]))


@pytest.mark.parametrize(
    ("code", "kind"), [(7, NotProcessed), (2, ConnectionLost)], ids=["REFUSED_STREAM", "INTERNAL_ERROR"]
)
def test_a_reset_while_a_large_request_waits_for_room(code: int, kind: type[EtcdError]) -> None:
    def stuck(session: Session) -> None:
        stream_id = session.request_headers()
        session.h2.reset_stream(stream_id, error_code=code)
        session.flush()
        session.until_closed()

    with ScriptedServer(stuck) as server:
        deadline = time.monotonic() + 10
        connection = EtcdClient(server.endpoint)._pool.connect(deadline)
        with pytest.raises(kind) as caught:
            connection.call(b"\x83\x86\x84\x41\x01a", b"x" * 1_000_000, deadline)
        assert time.monotonic() < deadline - 5, "it waits for nothing"
        assert not caught.value.maybe_applied
        assert not connection.reusable
        connection.close()


def test_a_stream_that_ends_in_the_middle_of_a_message() -> None:
    def half(session: Session) -> None:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.send_message(stream_id, b"whole")
        session.h2.send_data(stream_id, grpc(b"half of it")[:8])
        session.send_trailers(stream_id)
        session.until_closed()

    with ScriptedServer(half) as server, EtcdClient(server.endpoint).stream(PATH, b"", 5) as stream:
        assert next(stream) == b"whole"
        with pytest.raises(EtcdError, match="more than whole messages"):
            next(stream)


def test_a_stream_that_is_not_grpc_does_not_end_well() -> None:
    page = headers((":status", "200"), ("content-type", "text/html")) + frame(DATA, 0, 1, grpc(b"event")) + TRAILERS
    with pytest.raises(EtcdError, match="answered OK with another content type") as caught:
        watched(Played([settings(), page]))
    assert caught.value.maybe_applied


def test_a_watch_that_hears_pings_alone_is_no_flood_however_long_it_lasts() -> None:
    pings = [frame(PING, 0, 0, number(i) * 2) for i in range(3000)]
    channel = Played([settings(), *pings], tick=1.0)
    connection = opened(channel, 1e6)
    connection.start_stream(b"\x83", b"", 1e6, half_close=False)
    for _ in pings:
        connection._wait(1e6)
    assert channel.sent.count(b"\0\0\x08\6\1\0\0\0\0") >= 2999, "and each has its answer"


def test_a_reply_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grpc_reply.LARGEST_MESSAGE_BYTES <= 2**28
    monkeypatch.setattr(grpc_reply, "LARGEST_MESSAGE_BYTES", 100)
    endless = frame(DATA, 0, 1, b"\0" + number(100) + bytes(101))
    with pytest.raises(EtcdError, match="sent more than 100 bytes"):
        call(Played([settings(), BEGINNING + endless], then_end=False))
    with pytest.raises(EtcdError, match="announced a message of 101 bytes"):
        watched(Played([settings(), BEGINNING + frame(DATA, 0, 1, b"\0" + number(101))]))


def test_headers_and_message_are_one_send() -> None:
    channel = Played([settings(), plain_reply()])
    call(channel)
    _, *others = channel.sends
    assert [b"request" in data for data in others] == [True]
    assert b"\x83" in others[0]
