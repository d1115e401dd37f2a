"""A transaction of your own in etcd that the lock guards: once the lock is somebody else's, etcd refuses it.

The lock's key has the fencing token as its mod revision while the lock is ours, and etcd compares that in the very
transaction that writes. No clock is involved, and no check can come too early: it is what Go's ``IsOwner`` is for.
"""

from __future__ import annotations

import os

from celery import Celery

from celery_etcdlock import EtcdLocks, HeldLock, LockLost
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from examples.support import expect, say

app = Celery("guard")


def guarded_put(client: EtcdClient, held: HeldLock, key: bytes, value: bytes) -> bool:
    """Put ``key`` if the lock is still ours at that moment; whether it was.

    With python-etcd3: ``client.transaction(compare=[client.transactions.mod(held.key) == held.fencing_token], ...)``.
    """
    compare = messages.Compare
    ours = compare(key=held.key, target=compare.MOD, result=compare.EQUAL, mod_revision=held.fencing_token)
    put = messages.RequestOp(request_put=messages.PutRequest(key=key, value=value))
    request = messages.TxnRequest(compare=[ours], success=[put])
    reply = client.call("/etcdserverpb.KV/Txn", request.SerializeToString(), timeout_seconds=5)
    return bool(messages.TxnResponse.FromString(reply).succeeded)


def main() -> None:
    client = EtcdClient(os.environ.get("ETCDLOCK_ENDPOINTS", "127.0.0.1:2379"))
    locks = EtcdLocks.from_app(app)
    lock = locks.lock("leader", note="writes /config/leader")
    try:
        with lock as held:
            expect(guarded_put(client, held, b"/config/leader", b"me"), "the holder's transaction is applied")
            say("an operator deletes the lock, and somebody else takes it")
            delete = messages.DeleteRangeRequest(key=held.key).SerializeToString()
            client.call("/etcdserverpb.KV/DeleteRange", delete, timeout_seconds=5)
            with EtcdLocks(app).lock("leader") as theirs:
                expect(not guarded_put(client, held, b"/config/leader", b"late"), "who lost it is refused by etcd")
                expect(guarded_put(client, theirs, b"/config/leader", b"next"), "the next holder's is applied")
        expect(False, "the block of the lost lock ended with LockLost")
    except LockLost:
        expect(True, "the block of the lost lock ended with LockLost")
    client.close()
