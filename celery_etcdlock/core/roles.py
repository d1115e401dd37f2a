"""The least that users of an etcd need, as commands to paste: a role for workers, and one to look only."""

from __future__ import annotations


def role_commands(prefix: str) -> tuple[str, ...]:
    """For etcd's root. Producers need the worker's role, too: a call may take a lock. Passwords are asked for."""
    return (
        "etcdctl role add celery-locks",
        f"etcdctl role grant-permission celery-locks --prefix=true readwrite {prefix}",
        "etcdctl user add celery-worker && etcdctl user grant-role celery-worker celery-locks",
        "etcdctl role add celery-locks-look",
        f"etcdctl role grant-permission celery-locks-look --prefix=true read {prefix}",
        "etcdctl user add celery-look && etcdctl user grant-role celery-look celery-locks-look",
    )
