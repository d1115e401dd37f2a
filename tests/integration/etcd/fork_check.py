"""Run in a process of its own: a parent with open connections and a stream forks children that call too."""

from __future__ import annotations

import os
import sys
import threading
import time

from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient

CHILDREN = 20


def put(client: EtcdClient, key: bytes, value: bytes) -> None:
    client.call("/etcdserverpb.KV/Put", m.PutRequest(key=key, value=value).SerializeToString(), 20)


def get(client: EtcdClient, key: bytes) -> bytes:
    reply = client.call("/etcdserverpb.KV/Range", m.RangeRequest(key=key).SerializeToString(), 20)
    return bytes(m.RangeResponse.FromString(reply).kvs[0].value)


def child(client: EtcdClient, number: int) -> int:
    for turn in range(20):
        value = b"%d-%d" % (number, turn)
        put(client, b"child/%d" % number, value)
        if get(client, b"child/%d" % number) != value:
            return 1
    return 0


def main() -> None:
    endpoint = sys.argv[1]
    tls = {"ca_cert": sys.argv[2]} if len(sys.argv) > 2 else {}
    client = EtcdClient(endpoint, **tls)
    put(client, b"parent", b"start")
    stop = threading.Event()
    problems: list[BaseException] = []

    def busy() -> None:  # the parent's other threads are in the middle of calls at every fork
        try:
            turn = 0
            while not stop.is_set():
                turn += 1
                put(client, b"busy/%d" % threading.get_ident(), b"%d" % turn)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]  # a failure below ends the process
    for thread in threads:
        thread.start()
    request = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"parent"))
    with client.stream("/etcdserverpb.Watch/Watch", request.SerializeToString(), 60) as stream:
        assert m.WatchResponse.FromString(next(stream)).created
        before = {id(connection) for connection in client._pool.idle}
        pids = []
        for number in range(CHILDREN):
            pid = os.fork()
            if pid == 0:
                status = 3
                try:
                    status = child(client, number)
                    stream.__exit__(None, None, None)
                    client.close()
                finally:
                    os._exit(status)
            pids.append(pid)
            put(client, b"other", b"%d" % number)
        deadline = time.monotonic() + 60
        for pid in pids:
            while not (done := os.waitpid(pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)
                    raise SystemExit(f"child {pid} hangs")
                time.sleep(0.01)
            if done[1]:
                raise SystemExit(f"child {pid}: {os.waitstatus_to_exitcode(done[1])}")
        put(client, b"parent", b"end")
        (event,) = m.WatchResponse.FromString(next(stream)).events
        assert event.kv.value == b"end"
        assert not before or before & {id(connection) for connection in client._pool.open}
    stop.set()
    for thread in threads:
        thread.join(30)
    if problems:
        raise SystemExit(f"the parent's calls suffered: {problems!r}")
    print("ok")


main()
