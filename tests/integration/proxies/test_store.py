"""The contract of a LockStore, held by an etcd behind each proxy."""

from __future__ import annotations

from tests.contract.test_store import *  # noqa: F403
