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
from tests.etcd_server import EtcdCluster, EtcdServer, free_ports
from tests.redis_server import RedisServer, redis_binary
from tests.waiting import wait_for

SECONDS = 5.0


class EtcdStore:
    """Three members. What an administrator and a bad day do to them."""

    def __init__(self) -> None:
        self._cluster = EtcdCluster(fsync=False).start()
        self._hurt: EtcdServer | None = None

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self._cluster.members]

    def _leader(self) -> EtcdServer:
        def find() -> EtcdServer | None:
            for member in self._cluster.members:
                with suppress(OSError):
                    url = f"http://127.0.0.1:{member._ports[2]}/metrics"
                    with urllib.request.urlopen(url, timeout=2) as answer:
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
        for member in self._cluster.members:
            member.kill()
        for member in self._cluster.members:
            member.spawn()

    def heal(self) -> None:
        hurt, self._hurt = self._hurt, None
        if hurt is not None and hurt.process is None:
            hurt.spawn()
        elif hurt is not None:
            hurt.resume()
        for member in self._cluster.members:
            member.wait_healthy()

    def _keys(self, client: EtcdClient, lane: str) -> list[object]:
        found: list[object] = []
        for prefix in (f"/celery-etcdlock/{lane}/v1/", f"/locks/{lane}", f"/chaos/{lane}/"):
            request = messages.RangeRequest(key=prefix.encode(), range_end=prefix.encode() + b"\xff")
            answer = client.call("/etcdserverpb.KV/Range", request.SerializeToString(), SECONDS)
            found += messages.RangeResponse.FromString(answer).kvs
        return found

    def delete_keys(self, lane: str, number: int) -> None:
        client = EtcdClient([f"127.0.0.1:{port}" for port in self.ports])
        for kv in self._keys(client, lane):
            request = messages.DeleteRangeRequest(key=kv.key)  # type: ignore[attr-defined]
            client.call("/etcdserverpb.KV/DeleteRange", request.SerializeToString(), SECONDS)
        client.close()

    def revoke_leases(self, lane: str, number: int) -> None:
        client = EtcdClient([f"127.0.0.1:{port}" for port in self.ports])
        for lease in {kv.lease for kv in self._keys(client, lane)}:  # type: ignore[attr-defined]
            request = messages.LeaseRevokeRequest(ID=lease)
            client.call("/etcdserverpb.Lease/LeaseRevoke", request.SerializeToString(), SECONDS)
        client.close()

    def stop(self) -> None:
        self._cluster.stop()


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
    def ports(self) -> list[int]:
        return [self._port]

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


def start_broker() -> RedisServer:
    binary = redis_binary()
    assert binary is not None, "redis-server is missing"
    return RedisServer(binary).start()
