"""Checks a Redis for what locks need: reached, allowed, a primary that forgets nothing. Each check says what to do.

Nothing is changed but for one lease, which is taken back: it shows that scripts and writing work.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from redis import exceptions

from celery_etcdlock.core.check_results import CheckResult, broken, ok, warning
from celery_etcdlock.core.operations import GrantLease, RevokeLease
from celery_etcdlock.core.settings import Settings
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.redis_store import RedisStore

#: ``SET ... KEEPTTL``.
LEAST_VERSION = (6, 0)
PROBE_TTL_SECONDS = 10


def diagnose_redis(client: Any, store: RedisStore, settings: Settings) -> Iterator[CheckResult]:
    """Findings, one by one. ``client`` is a ``redis.Redis`` with a time-out. Doesn't raise for what it can report."""
    where = settings.endpoints[0]
    subject = f"endpoint {where}"
    try:
        facts: dict[str, Any] = client.info()
    except exceptions.AuthenticationError as error:
        remedy = "check etcdlock_username and etcdlock_password, and the user in Redis (ACL LIST)"
        yield broken(subject, f"it answered, but refused the login: {error}", remedy)
        return
    except exceptions.NoPermissionError as error:
        yield warning(subject, f"answers, but this user may not ask about it: {error}")
        facts = {}
    except (exceptions.RedisError, OSError) as error:
        remedy = "is it running, and is the address in etcdlock_endpoints right?"
        yield broken(subject, f"can't be reached: {error}", remedy)
        return
    else:
        yield ok(subject, f"answers, {'TLS' if where.lower().startswith('rediss') else 'no TLS'}")
    if facts:
        yield from _server(facts)
        yield from _memory(facts)
    yield from _disk(client)
    if settings.password is not None:
        yield ok("login", "with a password")
    else:
        remedy = "set requirepass or ACL users, or keep the port where only workers reach it"
        yield warning("login", "none: whoever reaches this Redis may take locks", remedy)
    yield from _probe(store, settings)
    text = "promises less than etcd: after a failover or restart two may hold one lock, and there is no gate"
    yield warning("Redis", text, "move to etcd where two at once would be a disaster: one setting")


def _server(facts: dict[str, Any]) -> Iterator[CheckResult]:
    version = str(facts.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < LEAST_VERSION:
        yield broken("version", f"{version} is too old", "upgrade to Redis 6.0 or later")
    else:
        yield ok("version", version or "unknown")
    if facts.get("role") == "slave":
        remedy = "name the primary in etcdlock_endpoints"
        yield broken("role", "this is a replica: it refuses writes", remedy)
    if facts.get("cluster_enabled"):
        yield broken("cluster", "this is a Redis cluster", "use one Redis that is none, or an etcd")


def _memory(facts: dict[str, Any]) -> Iterator[CheckResult]:
    policy, most = str(facts.get("maxmemory_policy", "noeviction")), int(facts.get("maxmemory", 0))
    if most and policy != "noeviction":
        text = f"maxmemory-policy is {policy}: a Redis that is full throws locks away"
        yield broken("memory", text, "set maxmemory-policy noeviction, or use a Redis of its own")
    elif most and int(facts.get("used_memory", 0)) > 0.9 * most:
        yield warning("memory", "nearly full, and a full Redis refuses locks", "raise maxmemory")
    else:
        yield ok("memory", f"{int(facts.get('used_memory', 0)) / 1024**2:,.0f} MB used, {policy}")


def _disk(client: Any) -> Iterator[CheckResult]:
    try:
        keeps = client.config_get("appendonly").get("appendonly")
        syncs = client.config_get("appendfsync").get("appendfsync")
    except (exceptions.RedisError, OSError):
        return  # not for every user to ask
    if (keeps, syncs) == ("yes", "always"):
        yield ok("disk", "each write is on disk before it is answered")
        return
    text = f"appendonly {keeps}, appendfsync {syncs}: a restart forgets locks that are held"
    yield warning("disk", text, "appendonly yes with appendfsync always, or an etcd")


def _probe(store: RedisStore, settings: Settings) -> Iterator[CheckResult]:
    prefix = settings.prefix
    lease = secrets.randbits(62) + 1
    try:
        store.perform(GrantLease(lease, PROBE_TTL_SECONDS), settings.timeout)
        store.perform(RevokeLease(lease), settings.timeout)
    except LockUnavailable as error:
        remedy = f"allow the user ~{prefix}* &{prefix}* +@read +@write +@scripting +@pubsub +@connection"
        yield broken("probe", f"can't write under {prefix}: {error}", remedy)
        return
    yield ok("probe", f"scripts and writing work under {prefix}")
