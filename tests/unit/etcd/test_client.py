"""Failover, back-off and the pool, against scripted servers."""

from __future__ import annotations

import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable

import pytest

from celery_etcdlock.etcd import connection_pool
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import ConnectFailed, EtcdError, EtcdStatusError, NotProcessed, TokenRejected
from tests.unit.etcd.recorded import settings
from tests.unit.etcd.scripted_server import ScriptedServer, Session, echo, unused_port

PATH = "/etcdserverpb.KV/Txn"


def order(client: EtcdClient, *endpoints: str) -> None:
    client._pool.healths.sort(key=lambda health: endpoints.index(str(health.endpoint)))


def test_connection_refused_names_the_endpoint_and_ends_at_the_deadline() -> None:
    port = unused_port()
    started = time.monotonic()
    with pytest.raises(ConnectFailed, match=rf"127.0.0.1:{port}: Connection refused") as caught:
        EtcdClient(f"127.0.0.1:{port}").call(PATH, b"", 0.3)
    assert time.monotonic() - started < 5
    assert (caught.value.maybe_applied, caught.value.permanent) == (False, False)


def test_all_endpoints_are_named() -> None:
    first, second = unused_port(), unused_port()
    with pytest.raises(ConnectFailed) as caught:
        EtcdClient([f"127.0.0.1:{first}", f"127.0.0.1:{second}"]).call(PATH, b"", 0.3)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_unknown_host() -> None:
    with pytest.raises(ConnectFailed, match=r"can't be resolved|wasn't resolved"):
        EtcdClient("no-such-host.invalid:1").call(PATH, b"", 2)


def test_refused_endpoint_is_passed_over() -> None:
    with ScriptedServer(echo) as server:
        dead = f"127.0.0.1:{unused_port()}"
        client = EtcdClient([dead, server.endpoint])
        order(client, dead, server.endpoint)
        assert client.call(PATH, b"x", 5) == b"x"


def test_black_hole_does_not_eat_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as hole, ScriptedServer(echo) as server:
        name = f"127.0.0.1:{hole.getsockname()[1]}"  # accepts, and never says a word
        client = EtcdClient([name, server.endpoint])
        order(client, name, server.endpoint)
        assert client.call(PATH, b"x", 2) == b"x"
        assert client.call(PATH, b"y", 2) == b"y"


def test_server_that_comes_up_late_is_found() -> None:
    with ScriptedServer(echo) as server:
        port = int(server.endpoint.rpartition(":")[2])
    reborn = ScriptedServer(echo)

    def start() -> None:
        reborn._listener = socket.create_server(("127.0.0.1", port))
        reborn._start(reborn._accept)

    timer = threading.Timer(0.3, start)
    timer.start()
    try:
        assert EtcdClient(f"127.0.0.1:{port}").call(PATH, b"x", 20) == b"x"
    finally:
        timer.join()
        reborn.__exit__()


def unavailable(session: Session) -> None:
    while True:
        stream_id = session.request()
        session.send_headers(stream_id)
        session.send_trailers(stream_id, 14, "etcdserver: leader changed")


def no_leader(session: Session) -> None:
    while True:
        session.send_headers(
            session.request(), ("grpc-status", "14"), ("grpc-message", "etcdserver: no leader"), end=True
        )


def test_unavailable_is_repeated_elsewhere_for_reads_only() -> None:
    with ScriptedServer(unavailable) as bad, ScriptedServer(echo) as good:
        client = EtcdClient([bad.endpoint, good.endpoint])
        order(client, bad.endpoint, good.endpoint)
        assert client.call(PATH, b"x", 5, repeatable=True) == b"x"
        client = EtcdClient([bad.endpoint, good.endpoint])
        order(client, bad.endpoint, good.endpoint)
        with pytest.raises(EtcdStatusError, match="leader changed") as caught:
            client.call(PATH, b"x", 5)
        assert caught.value.maybe_applied
        assert client.call(PATH, b"x", 5) == b"x", "the next call goes elsewhere"


def test_no_leader_is_repeated_elsewhere_even_for_writes() -> None:
    with ScriptedServer(no_leader) as bad, ScriptedServer(echo) as good:
        client = EtcdClient([bad.endpoint, good.endpoint])
        order(client, bad.endpoint, good.endpoint)
        assert client.call(PATH, b"x", 5) == b"x"


def refused(session: Session) -> None:
    session.h2.reset_stream(session.request(), error_code=7)
    session.flush()
    session.until_closed()


def going_away(session: Session) -> None:
    session.request()
    session.goaway(0, b"moving")
    session.until_closed()


def allows_no_calls(session: Session) -> None:
    session.sock.sendall(settings(streams=0))
    session.until_closed()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (no_leader, "etcdserver: no leader"),
        (refused, "the server refused the stream"),
        (going_away, "the server is going away (moving)"),
        (allows_no_calls, "the server allows no calls at present"),
    ],
)
@pytest.mark.parametrize("timeout_seconds", [1.0, 2.0])
def test_tries_after_a_harmless_failure_have_pauses_and_the_error_says_the_reason(
    script: Callable[[Session], None], reason: str, timeout_seconds: float
) -> None:
    with ScriptedServer(script, raw=script is allows_no_calls) as server:
        client = EtcdClient(server.endpoint)
        started = time.monotonic()
        with pytest.raises(EtcdError, match=re.escape(reason)) as caught:
            client.call(PATH, b"x", timeout_seconds)
        assert timeout_seconds / 2 <= time.monotonic() - started < timeout_seconds + 1
        assert not caught.value.maybe_applied
        # Rests of 25 ms at least that double to half a second, and what is left then is halved: a dozen tries.
        tries = server.connections
        assert 2 <= tries <= 12
        with pytest.raises(EtcdError):
            client.call(PATH, b"x", 0.2)
        assert server.connections > tries, "an endpoint that rests for longer than a call may last is tried at once"


def test_a_stream_waits_between_its_tries_too() -> None:
    with ScriptedServer(allows_no_calls, raw=True) as server:
        stream = EtcdClient(server.endpoint).stream(PATH, b"", 1.0)
        with pytest.raises(NotProcessed, match="allows no calls at present"), stream:
            pass
        assert 2 <= server.connections <= 10


def test_many_threads_at_once_each_have_a_connection() -> None:
    everybody = threading.Barrier(8)

    def meet(session: Session) -> None:
        stream_id = session.request()
        everybody.wait(10)
        session.answer(stream_id, session.bodies[stream_id][5:])
        echo(session)

    with ScriptedServer(meet) as server:
        client = EtcdClient(server.endpoint)
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda number=number: answers.append(client.call(PATH, b"%d" % number, 20)))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answers) == [b"%d" % number for number in range(8)]
        assert server.connections == 8
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 8


def test_idle_connections_are_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_pool, "IDLE_SECONDS", 0.0)
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        client.call(PATH, b"", 5)
        client.call(PATH, b"", 5)
        assert server.connections == 2


def test_idle_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_pool, "MOST_IDLE_CONNECTIONS", 2)
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        borrowed = [client._pool.connect(time.monotonic() + 5) for _ in range(4)]
        for connection in borrowed:
            client._pool.give_back(connection)
        assert len(client._pool.idle) == 2


def test_close_drops_idle_connections_and_a_later_call_connects_anew() -> None:
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        client.call(PATH, b"", 5)
        client.close()
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 2


def test_a_client_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(EtcdClient("a"))


def test_logins_are_bounded() -> None:
    def liar(session: Session) -> None:
        while True:
            stream_id = session.request()
            if session.headers[stream_id][b":path"].endswith(b"Authenticate"):
                session.answer(stream_id, b"\x12\x03abc")
            else:
                assert session.headers[stream_id][b"token"] == b"abc"
                session.send_headers(stream_id)
                session.send_trailers(stream_id, 16, "etcdserver: invalid auth token")

    with ScriptedServer(liar) as server, pytest.raises(TokenRejected) as caught:
        EtcdClient(server.endpoint, username="joe", password="hunter2").call(PATH, b"", 5)
    assert not caught.value.maybe_applied
    assert "hunter2" not in str(caught.value)
    assert server.requests == 8


def test_a_forked_child_gives_up_its_copies_at_once() -> None:
    with ScriptedServer(echo) as server:
        client = EtcdClient(server.endpoint)
        client.call(PATH, b"", 5)
        (idle,) = client._pool.idle
        descriptor = idle._channel._socket.fileno()  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            try:
                os.fstat(descriptor)
            except OSError:
                os._exit(0 if not client._pool.idle else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.call(PATH, b"x", 5) == b"x"
        assert server.connections == 1
