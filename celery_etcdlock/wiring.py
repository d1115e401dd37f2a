"""Opens the lock store that the settings ask for: the one place where etcd and the Celery side meet."""

from __future__ import annotations

from celery_etcdlock.core.settings import Settings
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.locking.memory import MemoryStore
from celery_etcdlock.locking.store import LockStore

__all__ = ["MEMORY_ENDPOINT", "open_stores"]

MEMORY_ENDPOINT = "memory://"


def open_stores(settings: Settings) -> tuple[LockStore, LockStore]:
    """Two stores on the same locks: one for tasks, and one for the renewal, whose connection nothing else may delay.

    Connects to nothing yet. Raises ``InvalidSetting`` when the endpoints can't be parsed.
    """
    if settings.endpoints == (MEMORY_ENDPOINT,):
        store = MemoryStore()
        return store, store
    # Imported here, since protobuf and h2 cost more than all the rest and memory:// needs neither.
    from celery_etcdlock.etcd.client import EtcdClient
    from celery_etcdlock.etcd.sockets import Sockets, native, patched
    from celery_etcdlock.etcd.store import EtcdStore

    if settings.channel is not None:
        from celery_etcdlock.etcd.grpcio import GrpcTransport

        transport = GrpcTransport(settings.channel)
        return GroupCommit(EtcdStore(transport, settings.prefix)), EtcdStore(transport, settings.prefix)

    def open_store(sockets: Sockets) -> EtcdStore:
        client = EtcdClient(
            settings.endpoints,
            username=settings.username,
            password=settings.password,
            ca_cert=settings.ca_cert,
            client_cert=settings.client_cert,
            client_key=settings.client_key,
            sockets=sockets,
        )
        return EtcdStore(client, settings.prefix)

    # The renewal's thread is a real one, also under gevent, and so are its sockets.
    return GroupCommit(open_store(patched())), open_store(native())
