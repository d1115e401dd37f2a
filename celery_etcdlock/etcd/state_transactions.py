"""Saved states, as transactions: what the holder of a lock leaves for the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery_etcdlock.core.operations import LoadStates, SaveStates
from celery_etcdlock.core.replies import NotHeld, State, StatesRefused, StatesSaved, StatesSeen, StoreReply
from celery_etcdlock.etcd.key_layout import Fields, Layout, delete, is_at, pages, put, read, token_in, unchanged


class States:
    """Encodes and decodes the operations on saved states; sends nothing itself."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def request(self, operation: SaveStates) -> Fields:
        """The operation as the fields of a ``TxnRequest``."""
        guard = self._layout.key(operation.guard.name, operation.guard.token)
        start = self._layout.states_start(operation.name)
        keys = [start + write.key.encode() for write in operation.writes]
        return {
            "compare": [
                unchanged(guard, operation.guard.mod_revision),
                *(unchanged(key, write.seen_revision) for key, write in zip(keys, operation.writes, strict=True)),
            ],
            "success": [
                delete(key) if write.value is None else put(key, write.value)
                for key, write in zip(keys, operation.writes, strict=True)
            ],
            "failure": [read(guard, keys_only=True), *(read(key) for key in keys)],
        }

    def reply(self, operation: SaveStates, response: Any) -> StoreReply:
        if response.succeeded:
            return StatesSaved(response.header.revision)
        guard, *states = [one.response_range.kvs for one in response.responses]
        if not is_at(guard, operation.guard.mod_revision):
            return NotHeld()
        start = self._layout.states_start(operation.name)
        return StatesRefused(_states((kv for kvs in states for kv in kvs), start))

    def load(self, operation: LoadStates, read_page: Callable[..., Any]) -> StatesSeen:
        """All states. ``read_page`` as in ``key_layout.pages``."""
        start = self._layout.states_start(operation.name)
        return StatesSeen(_states((kv for page in pages(read_page, start) for kv in page.kvs), start))


def _states(kvs: Iterable[Any], start: bytes) -> tuple[State, ...]:
    return tuple(State(token_in(kv, start), kv.value, kv.mod_revision) for kv in kvs)
