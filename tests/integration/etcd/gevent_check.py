"""Run in a process of its own, under gevent's monkey-patching: both flavours of sockets at work."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

from celery_etcdlock.errors import LockUnavailable  # noqa: E402
from celery_etcdlock.etcd import messages as m  # noqa: E402
from celery_etcdlock.etcd import sockets  # noqa: E402
from celery_etcdlock.etcd.client import EtcdClient  # noqa: E402

endpoint = sys.argv[1]
tls = {"ca_cert": sys.argv[2]} if len(sys.argv) > 2 else {}
cooperative = EtcdClient(endpoint, sockets=sockets.patched(), **tls)
real = EtcdClient(endpoint, sockets=sockets.native(), **tls)


def put(client: EtcdClient, value: bytes) -> None:
    client.call("/etcdserverpb.KV/Put", m.PutRequest(key=b"gevent", value=value).SerializeToString(), 20)


# patched: while one greenlet waits in a stream, others run
ticks = 0


def tick() -> None:
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)


ticker = gevent.spawn(tick)
request = m.WatchRequest(create_request=m.WatchCreateRequest(key=b"gevent")).SerializeToString()


def watch() -> bytes:
    with cooperative.stream("/etcdserverpb.Watch/Watch", request, 20) as stream:
        for answer in stream:
            for event in m.WatchResponse.FromString(answer).events:
                return bytes(event.kv.value)
    raise AssertionError


watcher = gevent.spawn(watch)
while ticks < 20:
    gevent.sleep(0.01)
greenlets = [gevent.spawn(put, cooperative, b"%d" % number) for number in range(10)]
gevent.joinall([watcher, *greenlets], timeout=20, raise_error=True)
assert watcher.value is not None
before = ticks
assert cooperative.call("/etcdserverpb.KV/Range", m.RangeRequest(key=b"gevent").SerializeToString(), 20)
with contextlib.suppress(LockUnavailable):
    EtcdClient("localhost:1", sockets=sockets.patched()).call("/x/y", b"", 0.3)
assert ticks > before + 5, "the hub stood still while a call waited"
try:
    with gevent.Timeout(0.2), cooperative.stream("/etcdserverpb.Watch/Watch", request, 20) as stream:
        for _ in stream:
            pass
except gevent.Timeout:
    pass
put(cooperative, b"after a timeout")

# native: a real thread calls on while a greenlet never yields
done: list[int] = []
start_thread = monkey.get_original("_thread", "start_new_thread")


def renew() -> None:
    for number in range(30):
        put(real, b"native")
        done.append(number)


start_thread(renew, ())
deadline = time.monotonic() + 20
while len(done) < 30:  # spins, and never gives the hub a turn
    assert time.monotonic() < deadline, f"only {len(done)} calls while a greenlet spun"

# a fork of a hub
pid = os.fork()
if pid == 0:
    status = 1
    try:
        put(cooperative, b"child")
        put(real, b"child")
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
put(cooperative, b"parent")
put(real, b"parent")
print("ok")
