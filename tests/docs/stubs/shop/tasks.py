"""What docs/testing.md calls shop/tasks.py."""

from __future__ import annotations

from celery_etcdlock import singleton_task


@singleton_task(unique_on=["account_id"])
def sync(account_id: int, full: bool = False) -> int:
    return account_id
