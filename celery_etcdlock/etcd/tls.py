"""TLS over any channel, by OpenSSL's memory buffers.

The standard library's ``SSLSocket`` is tied to one flavour of socket; buffers aren't, so one implementation serves
greenlets and real threads alike. They also never write by themselves: a forked child that drops its copy of a
connection can't send a close_notify into its parent's session.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from celery_etcdlock.etcd.endpoints import Endpoint
from celery_etcdlock.etcd.errors import ConnectionLost, EtcdError, NotEtcd, TlsFailed
from celery_etcdlock.etcd.sockets import RECEIVE_BYTES, Channel


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files. They are read for each new connection, so a replaced certificate is used."""

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def __bool__(self) -> bool:
        return bool(self.ca_cert or self.client_cert or self.client_key)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """A verifying context; raises TlsFailed, naming the setting whose file can't be used."""
    try:
        context = ssl.create_default_context(cafile=files.ca_cert)
    except OSError as error:  # SSLError is one
        raise _unusable("etcdlock_ca_cert", files.ca_cert, error) from error
    context.set_alpn_protocols(["h2"])
    if files.client_cert:
        try:
            context.load_cert_chain(files.client_cert, files.client_key, password=_refuse_password)
        except OSError as error:
            raise _unusable("etcdlock_client_cert", files.client_cert, error, files.client_key) from error
    return context


def _refuse_password() -> bytes:
    raise TlsFailed("the key of etcdlock_client_key is encrypted: give a key without a passphrase", permanent=True)


def _unusable(setting: str, path: str | None, error: OSError, key: str | None = None) -> TlsFailed:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = "the key of etcdlock_client_key isn't this certificate's"
        elif key is None and setting == "etcdlock_client_cert":
            reason = f"{reason} (is etcdlock_client_key missing?)"
    else:
        reason = error.strerror or str(error)
    files = f"{path!r}" if key is None else f"{path!r} with {key!r}"
    return TlsFailed(f"{setting}: {files} can't be used: {reason}", permanent=True)


class TlsChannel:
    """A TLS session over a channel; same meanings as ``Channel``. Raises EtcdError when the handshake fails."""

    def __init__(self, below: Channel, context: ssl.SSLContext, endpoint: Endpoint, deadline: float) -> None:
        self._below = below
        self.interrupt, self.close, self.forget = below.interrupt, below.close, below.forget
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=endpoint.host)
        try:
            self._shake_hands(deadline)
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

    def _shake_hands(self, deadline: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                data = self._below.receive(deadline)
                if not data:
                    raise ConnectionResetError("the server closed the connection in the handshake") from None
                self._incoming.write(data)
            else:
                return
            finally:
                self._flush(deadline)  # also the alert that says why it failed

    def _flush(self, deadline: float) -> None:
        if self._outgoing.pending:
            self._below.send(self._outgoing.read(), deadline)

    def send(self, data: bytes, deadline: float) -> None:
        self._tls.write(data)
        self._flush(deadline)

    def _decrypt(self) -> bytes | None:
        try:
            return self._tls.read(RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    def receive(self, deadline: float) -> bytes:
        while (plain := self._decrypt()) is None:
            data = self._below.receive(deadline)
            if not data:
                return b""
            self._incoming.write(data)
        return plain

    def receive_now(self) -> bytes | None:
        while (plain := self._decrypt()) is None:
            data = self._below.receive_now()
            if not data:
                return data
            self._incoming.write(data)
        return plain


def explain_tls_error(error: ssl.SSLError, endpoint: str, *, sent: bool = False) -> EtcdError:
    """A typed error that names the remedy. After ``sent`` a broken session is a lost connection."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (62, 64):  # host name, IP address
            text = (
                f"the server's certificate is for another host name ({error.verify_message}): name the endpoint in "
                "etcdlock_endpoints as the certificate does, or issue one with that name"
            )
        elif error.verify_code == 10:
            text = "the server's certificate has expired: renew it"
        else:
            text = (
                f"the server's certificate doesn't verify ({error.verify_message}): set etcdlock_ca_cert to the CA "
                "that signed it"
            )
        return TlsFailed(text, endpoint=endpoint, permanent=True)
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        # TLS 1.3 tells a client that its certificate was refused only after the client's side of the handshake
        return TlsFailed(
            f"the server refused our certificate ({reason.replace('_', ' ').lower()}): set "
            "etcdlock_client_cert and etcdlock_client_key to ones that its CA signed",
            endpoint=endpoint,
            permanent=True,
        )
    if sent:
        return ConnectionLost(f"TLS failed: {reason or error}", endpoint=endpoint, maybe_applied=True)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return NotEtcd(
            "the server doesn't speak TLS: use http:// in etcdlock_endpoints without certificates, or "
            "switch TLS on in etcd",
            endpoint=endpoint,
            permanent=True,
        )
    return TlsFailed(f"TLS failed: {reason or error}", endpoint=endpoint)
