"""Opens the lock store that the settings ask for: the one place where etcd and the Celery side meet."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery_etcdlock.core.settings import LOGIN, Settings
from celery_etcdlock.errors import EtcdLockError, InvalidSetting
from celery_etcdlock.locking.deletion_watch import Deletions
from celery_etcdlock.locking.group_commit import GroupCommit
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.locking.lock_store import LockStore
from celery_etcdlock.locking.memory_store import MemoryStore

if TYPE_CHECKING:
    from celery_etcdlock.etcd.client import EtcdClient
    from celery_etcdlock.etcd.sockets import Sockets
    from celery_etcdlock.locking.redis_store import RedisStore


def open_stores(settings: Settings) -> tuple[LockStore, LockStore]:
    """Two stores on the same locks: one for tasks, and one for the renewal, whose connection nothing else may delay.

    Connects to nothing yet. Raises ``InvalidSetting`` when the endpoints can't be parsed.
    """
    if settings.in_memory:
        store = MemoryStore()
        return store, store
    if settings.in_redis:
        return open_redis_store(settings), open_redis_store(settings)
    # Imported here, since protobuf and hpack cost more than all the rest and memory:// needs neither.
    from celery_etcdlock.etcd.cluster_identity import ClusterIdentity
    from celery_etcdlock.etcd.etcd_store import EtcdStore
    from celery_etcdlock.etcd.sockets import native, patched

    identity = ClusterIdentity()
    if settings.channel is not None:
        from celery_etcdlock.etcd.grpcio_transport import GrpcTransport

        transport = GrpcTransport(settings.channel)
        tasks, renewal = (EtcdStore(transport, settings.prefix, identity=identity) for _ in range(2))
        return GroupCommit(tasks), renewal

    def open_store(sockets: Sockets) -> EtcdStore:
        return EtcdStore(open_client(settings, sockets=sockets), settings.prefix, identity=identity)

    # The renewal's thread is a real one, also under gevent, and so are its sockets.
    return GroupCommit(open_store(patched())), open_store(native())


def open_redis_store(settings: Settings) -> RedisStore:
    """Connects to nothing yet. Raises ``InvalidSetting`` where redis-py isn't installed."""
    pool = _redis_pool(settings)
    from celery_etcdlock.locking.redis_store import RedisStore

    return RedisStore(pool, settings.prefix)


def open_redis_client(settings: Settings) -> Any:
    """A ``redis.Redis`` with a time-out, for the operator. Raises ``InvalidSetting``."""
    pool = _redis_pool(settings, socket_timeout=settings.timeout)
    import redis

    return redis.Redis(connection_pool=pool)


def _redis_pool(settings: Settings, **more: object) -> Any:
    try:
        import redis
    except ImportError:
        raise InvalidSetting(
            "etcdlock_endpoints names a Redis, but redis-py isn't installed: pip install celery-etcdlock[redis]"
        ) from None
    options: dict[str, object] = {
        "username": settings.username,
        "password": settings.password,
        "ssl_ca_certs": settings.ca_cert,
        "ssl_certfile": settings.client_cert,
        "ssl_keyfile": settings.client_key,
    }
    given = {name: value for name, value in options.items() if value is not None}
    connect: Any = redis.ConnectionPool.from_url
    return connect(settings.endpoints[0], socket_connect_timeout=settings.timeout, **given, **more)


def open_client(
    settings: Settings, endpoints: tuple[str, ...] | None = None, *, sockets: Sockets | None = None
) -> EtcdClient:
    """A client of the etcd that the settings name, or of some of its endpoints. Connects to nothing yet."""
    from celery_etcdlock.etcd.client import EtcdClient

    return EtcdClient(
        endpoints or settings.endpoints, sockets=sockets, **{name: getattr(settings, name) for name in LOGIN}
    )


def open_deletions(settings: Settings) -> Deletions | None:
    """A watch for all deletions, or ``None`` where there is none: those who wait look again now and then."""
    if not settings.in_etcd or settings.channel is not None:
        return None
    from celery_etcdlock.etcd.etcd_inspector import EtcdInspector
    from celery_etcdlock.etcd.sockets import native

    return EtcdInspector(open_client(settings, sockets=native()), settings.prefix, settings.timeout)


def etcd_key(settings: Settings, name: str, token: str) -> bytes:
    """Where a key under a lock's name lies. Raises ``EtcdLockError`` where the locks aren't in an etcd."""
    if not settings.in_etcd:
        raise EtcdLockError(f"locks at {settings.endpoints[0]} have no key in an etcd")
    from celery_etcdlock.etcd.key_layout import Layout

    return Layout(settings.prefix).key(name, token)


def open_inspector(settings: Settings) -> Inspector:
    """The operator's view of the locks. Connects to nothing yet. Raises ``InvalidSetting`` where there is none."""
    check_inspectable(settings)
    if settings.in_redis:
        client, store = open_redis_client(settings), open_redis_store(settings)
        from celery_etcdlock.locking.redis_inspector import RedisInspector

        return RedisInspector(client, store, settings.prefix, settings.timeout)
    from celery_etcdlock.etcd.etcd_inspector import EtcdInspector

    return EtcdInspector(open_client(settings), settings.prefix, settings.timeout)


def import_for_threads(settings: Settings) -> None:
    """Import all that threads of a worker's MainProcess use, before the first of them runs.

    A child that is forked while another thread imports would wait for ever for that module's lock.
    """
    open_stores(settings)
    with suppress(InvalidSetting):
        open_inspector(settings)


def check_inspectable(settings: Settings) -> None:
    """Raise ``InvalidSetting`` unless the locks are in an etcd, or a Redis, that we connect to ourselves."""
    if settings.in_memory:
        raise InvalidSetting(
            "locks at memory:// are in the memory of each process, where no other one can look: set etcdlock_endpoints "
            "to an etcd or a Redis"
        )
    if settings.channel is not None:
        raise InvalidSetting(
            "locks can't be looked at through etcdlock_channel: for this command set etcdlock_endpoints (and user or "
            "certificates) instead"
        )
