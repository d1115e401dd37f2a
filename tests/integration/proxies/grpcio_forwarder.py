"""A plain grpc server in Python that asks etcd.

``python -m tests.integration.proxies.grpcio_forwarder LISTEN ETCD IDLE_SECONDS``; with a certificate and a key as
fourth and fifth argument it speaks TLS. It ends a connection that is idle for so long, and any that is twice as old.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc


class Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method as a stream of messages each way, which a unary call is, too."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def service(self, details: Any) -> Any:
        def forward(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            metadata = [pair for pair in context.invocation_metadata() if pair[0] in ("token", "hasleader")]
            answers = self._channel.stream_stream(details.method)(
                requests, timeout=context.time_remaining(), metadata=metadata
            )
            context.add_callback(answers.cancel)
            try:
                yield from answers
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(forward)


def main() -> None:
    listen, etcd, idle_seconds, *certificate = sys.argv[1:]
    limits = ("grpc.max_connection_idle_ms", "grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms")
    server = grpc.server(ThreadPoolExecutor(100), options=[(limit, int(idle_seconds) * 1000) for limit in limits])
    server.add_generic_rpc_handlers((Forwarder(grpc.insecure_channel(etcd)),))
    if certificate:
        chain, key = (Path(path).read_bytes() for path in certificate)
        server.add_secure_port(listen, grpc.ssl_server_credentials([(key, chain)]))
    else:
        server.add_insecure_port(listen)
    server.start()
    threading.Event().wait()


main()
