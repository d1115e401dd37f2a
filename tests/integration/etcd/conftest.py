from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from celery_etcdlock.etcd import messages as m
from celery_etcdlock.etcd.client import EtcdClient
from tests.etcd_server import EtcdServer


class Authority:
    """A throwaway CA."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._subject, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.ca_cert = str(directory / f"{name}.pem")
        Path(self.ca_cert).write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def issue(
        self, common_name: str, *, address: str = "127.0.0.1", passphrase: bytes | None = None
    ) -> tuple[str, str]:
        """Paths of a certificate, for servers and clients alike, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            self._builder(subject, key)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = self._directory / f"{self._name}-{common_name}-{address}"
        cert_path, key_path = stem.with_suffix(".crt"), stem.with_suffix(".key")
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        key_path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return str(cert_path), str(key_path)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "right")


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other-ca"), "wrong")


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[EtcdClient]:
    made = EtcdClient(etcd.endpoint)
    yield made
    made.close()


class Api:
    """The few calls that tests make."""

    def __init__(self, client: EtcdClient, timeout_seconds: float = 10) -> None:
        self.client, self.timeout_seconds = client, timeout_seconds

    def __call__(self, method: str, request: object, reply: object, *, repeatable: bool = False) -> object:
        answer = self.client.call(
            f"/etcdserverpb.{method}",
            request.SerializeToString(),  # type: ignore[attr-defined]
            self.timeout_seconds,
            repeatable=repeatable,
        )
        return reply.FromString(answer)  # type: ignore[attr-defined]

    def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> object:
        return self("KV/Put", m.PutRequest(key=key, value=value, lease=lease), m.PutResponse)

    def get(self, key: bytes) -> bytes | None:
        reply = self("KV/Range", m.RangeRequest(key=key), m.RangeResponse, repeatable=True)
        values = [found.value for found in reply.kvs]  # type: ignore[attr-defined]
        return values[0] if values else None

    def add_user(self, name: str, password: str, role: str | None = None) -> None:
        options = m.UserAddOptions(no_password=not password)
        self("Auth/UserAdd", m.AuthUserAddRequest(name=name, password=password, options=options), m.AuthUserAddResponse)
        if role:
            self("Auth/UserGrantRole", m.AuthUserGrantRoleRequest(user=name, role=role), m.AuthUserGrantRoleResponse)

    def add_role(self, name: str, key: bytes | None = None, range_end: bytes = b"") -> None:
        self("Auth/RoleAdd", m.AuthRoleAddRequest(name=name), m.AuthRoleAddResponse)
        if key is not None:
            permission = m.Permission(permType=m.Permission.READWRITE, key=key, range_end=range_end)
            request = m.AuthRoleGrantPermissionRequest(name=name, perm=permission)
            self("Auth/RoleGrantPermission", request, m.AuthRoleGrantPermissionResponse)

    def enable_auth(self) -> None:
        self("Auth/AuthEnable", m.AuthEnableRequest(), m.AuthEnableResponse)


@pytest.fixture
def api(client: EtcdClient) -> Api:
    return Api(client)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def make_api() -> type[Api]:
    return Api
