"""A worker's way to the lock store, which can be cut: by proxies on its connections, or in a network of its own."""

from __future__ import annotations

from typing import Protocol

from tests.chaos.network import Namespace
from tests.fault_proxy import FaultProxy

__all__ = ["ByNetwork", "ByProxies", "Way"]


class Way(Protocol):
    #: Where the worker finds the store, and what goes before its command.
    endpoints: list[str]
    enter: list[str]

    def cut(self, *, requests: bool = False, replies: bool = False) -> None: ...

    def heal(self) -> None: ...

    def close(self) -> None: ...


class ByProxies:
    """What is cut stays lost, and the connections that lost something are reset when it is healed."""

    def __init__(self, endpoints: list[str]) -> None:
        self._proxies = [FaultProxy(int(endpoint.rpartition(":")[2])) for endpoint in endpoints]
        self.endpoints = [f"127.0.0.1:{proxy.port}" for proxy in self._proxies]
        self.enter: list[str] = []

    def cut(self, *, requests: bool = False, replies: bool = False) -> None:
        for proxy in self._proxies:
            proxy.swallow_requests, proxy.swallow_replies = requests, replies

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()


class ByNetwork:
    """What is cut is lost, and sent again as TCP does. The broker stays within reach."""

    def __init__(self, endpoints: list[str], worker: Namespace, members: list[Namespace]) -> None:
        self.endpoints = endpoints
        self.enter = worker.enter
        self._worker = worker
        self._members = members

    def cut(self, *, requests: bool = False, replies: bool = False) -> None:
        for member in self._members:
            if requests:
                self._worker.lose_packets_to(member)
            if replies:
                member.lose_packets_to(self._worker)

    def heal(self) -> None:
        self._worker.heal(self._members)
        for member in self._members:
            member.heal([self._worker])

    def close(self) -> None:
        """Nothing: the network is the store's."""
