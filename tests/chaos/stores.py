"""The servers: a broker, an etcd of three members, a Redis for the locks of those who keep them there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from tests.chaos.network import Namespace, Network
from tests.chaos.ways import ByNetwork, ByProxies, Way
from tests.etcd_server import EtcdCluster, EtcdServer, free_ports
from tests.redis_server import RedisServer, redis_binary
from tests.waiting import wait_for

SECONDS = 5.0
#: Of clients, peers and metrics.
MEMBERS_PORTS = (2379, 2380, 2381)


class EtcdStore:
    """Three members. What an administrator and a bad day do to them."""

    def __init__(self) -> None:
        self._members: list[EtcdServer] = self._start()
        self._hurt: EtcdServer | None = None

    def _start(self) -> list[EtcdServer]:
        return EtcdCluster(fsync=False).start().members

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self._members]

    def new_way(self) -> Way:
        return ByProxies(self.endpoints)

    def _leader(self) -> EtcdServer:
        def find() -> EtcdServer | None:
            for member in self._members:
                url = f"{member.metrics_url}/metrics"
                with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                    if b"\netcd_server_is_leader 1\n" in answer.read():
                        return member
            return None

        leader = wait_for(find, "there is a leader")
        assert leader is not None
        return leader

    def kill_leader(self) -> None:
        self._hurt = self._leader()
        self._hurt.kill()

    def pause_leader(self) -> None:
        self._hurt = self._leader()
        self._hurt.pause()

    def restart_all(self) -> None:
        for member in self._members:
            member.kill()
        for member in self._members:
            member.spawn()

    def heal(self) -> None:
        hurt, self._hurt = self._hurt, None
        if hurt is not None and hurt.process is None:
            hurt.spawn()
        elif hurt is not None:
            hurt.resume()
        for member in self._members:
            member.wait_healthy()

    def _keys(self, client: EtcdClient, lane: str) -> list[object]:
        found: list[object] = []
        for prefix in (f"/celery-etcdlock/{lane}/v1/", f"/locks/{lane}", f"/chaos/{lane}/"):
            request = messages.RangeRequest(key=prefix.encode(), range_end=prefix.encode() + b"\xff")
            answer = client.call("/etcdserverpb.KV/Range", request.SerializeToString(), SECONDS)
            found += messages.RangeResponse.FromString(answer).kvs
        return found

    def delete_keys(self, lane: str, number: int) -> None:
        client = EtcdClient(self.endpoints)
        for kv in self._keys(client, lane):
            request = messages.DeleteRangeRequest(key=kv.key)  # type: ignore[attr-defined]
            client.call("/etcdserverpb.KV/DeleteRange", request.SerializeToString(), SECONDS)
        client.close()

    def revoke_leases(self, lane: str, number: int) -> None:
        client = EtcdClient(self.endpoints)
        for lease in {kv.lease for kv in self._keys(client, lane)}:  # type: ignore[attr-defined]
            request = messages.LeaseRevokeRequest(ID=lease)
            client.call("/etcdserverpb.Lease/LeaseRevoke", request.SerializeToString(), SECONDS)
        client.close()

    def stop(self) -> None:
        for member in self._members:
            member.stop()


class _Member(EtcdServer):
    """One in a network namespace of its own, where all ports are free."""

    def __init__(self, name: str, namespace: Namespace, cluster: str) -> None:
        super().__init__(name=name, ports=MEMBERS_PORTS, cluster=cluster, fsync=False)
        self.host = namespace.address
        self.namespace = namespace

    def command(self) -> list[str]:
        return [*self.namespace.enter, *super().command()]


class NetworkedEtcdStore(EtcdStore):
    """The same, on ``network``, which it ends when it is stopped."""

    def __init__(self, network: Network) -> None:
        self._network = network
        super().__init__()

    def _start(self) -> list[EtcdServer]:
        namespaces = {f"member{number}": self._network.namespace() for number in range(3)}
        cluster = ",".join(f"{name}=http://{one.address}:{MEMBERS_PORTS[1]}" for name, one in namespaces.items())
        self._networked = [_Member(name, namespace, cluster) for name, namespace in namespaces.items()]
        for member in self._networked:
            member.spawn()
        for member in self._networked:
            member.wait_healthy()
        return list(self._networked)

    def new_way(self) -> Way:
        members = [member.namespace for member in self._networked]
        return ByNetwork(self.endpoints, self._network.namespace(), members)

    def cut_off_leader(self) -> None:
        """The leader and its followers don't hear of each other; workers reach all of them."""
        leader = self._leader()
        for member in self._networked:
            if member is not leader:
                member.namespace.lose_packets_to(leader.namespace)  # type: ignore[attr-defined]
                leader.namespace.lose_packets_to(member.namespace)  # type: ignore[attr-defined]

    def heal(self) -> None:
        namespaces = [member.namespace for member in self._networked]
        for namespace in namespaces:
            namespace.heal(namespaces)
        super().heal()

    def stop(self) -> None:
        super().stop()
        self._network.stop()


class RedisStore:
    """One Redis without persistence, as most that hold locks."""

    def __init__(self) -> None:
        binary = redis_binary()
        assert binary is not None, "redis-server is missing"
        [self._port] = free_ports(1)
        self._command = [binary, "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{self._port}"]

    def new_way(self) -> Way:
        return ByProxies(self.endpoints)

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        time.sleep(0.3)

    def kill_leader(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause_leader(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def restart_all(self) -> None:
        self.kill_leader()
        self._start()

    def heal(self) -> None:
        if self._process is None:
            self._start()
        else:
            os.kill(self._process.pid, signal.SIGCONT)

    def delete_keys(self, lane: str, number: int) -> None:
        import redis

        with redis.Redis(port=self._port, db=number) as client:
            client.flushdb()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def start_broker(host: str = "127.0.0.1") -> RedisServer:
    binary = redis_binary()
    assert binary is not None, "redis-server is missing"
    return RedisServer(binary, host).start()
