"""New connections: to whichever endpoint is well, with TLS where the endpoint has it, within the caller's deadline."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Sequence

from celery_etcdlock.etcd.endpoints import Endpoint, EndpointHealth, next_endpoint
from celery_etcdlock.etcd.errors import ConnectFailed, DeadlinePassed, EtcdError, NotEtcd, TlsFailed
from celery_etcdlock.etcd.grpc_connection import GrpcConnection
from celery_etcdlock.etcd.sockets import Channel, Sockets, connect_tcp
from celery_etcdlock.etcd.tls import TlsChannel, TlsFiles, client_context, explain_tls_error


class Connector:
    """Connects to one of ``healths``' endpoints. ``open`` are its connections that live, for a fork to forget."""

    def __init__(self, sockets: Sockets, healths: Sequence[EndpointHealth], tls_files: TlsFiles) -> None:
        self.open: weakref.WeakSet[GrpcConnection] = weakref.WeakSet()
        self._sockets = sockets
        self._healths = healths
        self._tls_files = tls_files

    def connect(self, deadline: float) -> GrpcConnection:
        """A new connection to any endpoint, trying until the deadline; ConnectFailed says what each one said."""
        problems: dict[str, EtcdError] = {}
        monotonic = self._sockets.monotonic
        while True:
            now = monotonic()
            health = next_endpoint(self._healths, now)
            remaining = deadline - now
            pause = health.rests_until - now
            if remaining <= 0 or (pause >= remaining and problems):
                raise _unreachable(problems)
            if 0 < pause < remaining:
                self._sockets.sleep(pause)
                remaining -= pause
            untried = len(self._healths) - len(problems)
            share = monotonic() + remaining / max(1, untried)
            try:
                return self._connect_to(health, share)
            except EtcdError as error:
                health.failed(monotonic())
                problems[str(health.endpoint)] = error
                if len(problems) == len(self._healths) and all(one.permanent for one in problems.values()):
                    raise _unreachable(problems) from error

    def _connect_to(self, health: EndpointHealth, deadline: float) -> GrpcConnection:
        endpoint = health.endpoint
        context = client_context(self._tls_files) if endpoint.tls else None
        channel: Channel = connect_tcp(self._sockets, endpoint.host, endpoint.port, deadline)
        try:
            if context is not None:
                channel = _secured(channel, context, endpoint, deadline)
            connection = GrpcConnection(channel, health, self._sockets.monotonic)
            self.open.add(connection)
            connection.open(deadline)
        except BaseException:
            channel.close()
            raise
        return connection

    def forget_all(self) -> None:
        """In a forked child: give up its copies of the connections, without a word to the server."""
        inherited = list(self.open)
        self.open = weakref.WeakSet()
        for connection in inherited:
            connection.forget()


def _secured(below: Channel, context: ssl.SSLContext, endpoint: Endpoint, deadline: float) -> Channel:
    channel = TlsChannel(below, context, endpoint.host)
    try:
        channel.handshake(deadline)
    except ssl.SSLError as error:
        raise explain_tls_error(error, str(endpoint)) from error
    except TimeoutError as error:
        raise TlsFailed("no TLS handshake in time", endpoint=str(endpoint)) from error
    except OSError as error:
        raise TlsFailed(
            f"the TLS handshake was cut off ({error.strerror or error}): does this server speak TLS? If "
            "not, use http:// in etcdlock_endpoints, without certificates",
            endpoint=str(endpoint),
        ) from error
    return channel


def _unreachable(problems: dict[str, EtcdError]) -> EtcdError:
    if not problems:
        return DeadlinePassed("no time was left to connect to etcd")
    if len(problems) == 1:
        (only,) = problems.values()
        return only
    kinds = {type(problem) for problem in problems.values()}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= {TlsFailed, NotEtcd} else ConnectFailed
    permanent = all(problem.permanent for problem in problems.values())
    return kind(
        "no etcd endpoint could be reached: " + "; ".join(str(problem) for problem in problems.values()),
        permanent=permanent,
    )
