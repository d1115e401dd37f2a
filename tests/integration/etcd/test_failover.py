"""Servers that die, stop, restart or come up late."""

from __future__ import annotations

from typing import Any

import pytest

from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import ConnectFailed, ConnectionLost, EtcdError
from tests.etcd_server import EtcdCluster, EtcdServer, running_etcd


def serving(client: EtcdClient, cluster: EtcdCluster) -> EtcdServer:
    """The member that the next call would go to."""
    (idle,) = client._pool.idle
    return next(member for member in cluster.members if member.endpoint == idle.endpoint)


def test_a_member_dies_and_calls_go_on(make_api: Any) -> None:
    with EtcdCluster(fsync=True) as cluster:
        client = EtcdClient(cluster.endpoints)
        api = make_api(client, 20)
        api.put(b"k", b"1")
        victim = serving(client, cluster)
        victim.kill()
        assert api.get(b"k") == b"1"
        api.put(b"k", b"2")
        assert serving(client, cluster) is not victim
        victim.start()
        assert make_api(EtcdClient(victim.endpoint), 20).get(b"k") == b"2"


def test_a_member_that_stopped_costs_one_call_at_most(make_api: Any) -> None:
    with EtcdCluster(fsync=True) as cluster:
        client = EtcdClient(cluster.endpoints)
        api = make_api(client, 6)
        api.put(b"k", b"1")
        victim = serving(client, cluster)
        victim.pause()
        try:
            assert make_api(client, 15).get(b"k") == b"1", "a read is repeated elsewhere within its time"
            client.close()
            client._pool.healths.sort(key=lambda health: str(health.endpoint) != victim.endpoint)
            for health in client._pool.healths:
                health.succeeded()
            make_api(client, 15).put(b"k", b"2")  # connects, hears nothing, goes on to the next
            assert api.get(b"k") == b"2"
        finally:
            victim.resume()


def test_restart_between_calls_is_not_noticed(make_api: Any) -> None:
    with running_etcd() as server:
        client = EtcdClient(server.endpoint)
        api = make_api(client)
        for stop in (server.terminate, server.kill):
            api.put(b"k", b"1")
            stop()
            server.start()
            api.put(b"k", b"2")
            assert api.get(b"k") == b"2"


def test_a_server_that_comes_up_late_is_found(make_api: Any) -> None:
    server = EtcdServer()
    try:
        api = make_api(EtcdClient(server.endpoint), 0.2)
        with pytest.raises(ConnectFailed, match="refused"):
            api.put(b"k")
        server.spawn()
        make_api(api.client, 30).put(b"k", b"1")
        assert api.get(b"k") == b"1"
    finally:
        server.stop()


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_stream_ends_with_its_server(how: str, make_api: Any) -> None:
    with running_etcd() as server:
        client = EtcdClient(server.endpoint)
        request = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"k"))
        with client.stream("/etcdserverpb.Watch/Watch", request.SerializeToString(), 30) as stream:
            assert m.WatchResponse.FromString(next(stream)).created
            getattr(server, how)()
            with pytest.raises(EtcdError) as caught:
                for _ in stream:
                    pass
            if how == "kill":
                assert isinstance(caught.value, ConnectionLost)
