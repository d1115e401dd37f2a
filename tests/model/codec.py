"""Splits the production store's blocking calls in two: the bytes of a request, and what its answer means.

``EtcdStore.perform`` sends and receives in one go. Here the same code runs twice: once against a transport that
keeps the request and answers nothing, and once against one that gives the answer. So the explorer decides what
happens in between, and the encoding that it explores is production's (rule 20).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_etcdlock.core.operations import StoreOperation
from celery_etcdlock.core.replies import StoreReply
from celery_etcdlock.etcd.errors import status_error
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.etcd.lock_transactions import LockTransactions
from celery_etcdlock.etcd.recent_conflicts import RecentConflicts
from tests.model.world import PREFIX

__all__ = ["Codec", "NeverLately"]


class _Sent(BaseException):
    """Carries a request out of the store."""


class _Sending:
    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        raise _Sent(path, request, repeatable)

    def stream(self, path: str, request: bytes, timeout_seconds: float) -> Any:
        raise _Sent(path, request, True)

    def close(self) -> None:
        pass


class _Answering(_Sending):
    def __init__(self) -> None:
        self.expected = b""
        self.answer: bytes | tuple[int, str] = b""

    def call(self, path: str, request: bytes, timeout_seconds: float, *, repeatable: bool = False) -> bytes:
        assert request == self.expected, "the store asks for more than one call"
        if isinstance(self.answer, tuple):
            raise status_error(*self.answer)
        return self.answer

    @contextmanager
    def stream(self, path: str, request: bytes, timeout_seconds: float) -> Iterator[Iterator[bytes]]:
        assert isinstance(self.answer, bytes)
        yield iter([self.answer])


class NeverLately(RecentConflicts):
    """With it, a store never asks before it tries."""

    def lately(self, name: str) -> bool:
        return False


class _Store(EtcdStore):
    def __init__(self, transport: Any, places_class: type[LockTransactions]) -> None:
        super().__init__(transport, PREFIX)
        self._places = places_class(self._layout)
        self._recent_conflicts = NeverLately()


class Codec:
    """Encodes and decodes by ``places_class``, which a mutation may have weakened."""

    def __init__(self, places_class: type[LockTransactions] = LockTransactions) -> None:
        self._answering = _Answering()
        self._encoder, self._decoder = _Store(_Sending(), places_class), _Store(self._answering, places_class)
        self._requests: dict[StoreOperation, tuple[str, bytes, bool]] = {}
        self._replies: dict[Any, StoreReply] = {}

    def encode(self, operation: StoreOperation) -> tuple[str, bytes, bool]:
        """Path, request, and whether the transport may repeat it by itself."""
        known = self._requests.get(operation)
        if known is None:
            try:
                self._encoder.perform(operation, 1.0)
            except _Sent as sent:
                known = self._requests[operation] = sent.args  # type: ignore[assignment]
        assert known is not None
        return known

    def decode(self, operation: StoreOperation, request: bytes, answer: bytes | tuple[int, str]) -> StoreReply:
        key = (type(operation), request, answer)
        known = self._replies.get(key)
        if known is None:
            self._answering.expected, self._answering.answer = request, answer
            known = self._replies[key] = self._decoder.perform(operation, 1.0)
        return known
