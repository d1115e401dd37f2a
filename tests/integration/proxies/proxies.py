"""What people put in front of etcd: processes on free ports of the loopback, ended by their own handles.

Each has the settings that ``docs/operating.md`` recommends, but for its idle time-outs, which are an argument; the
gateway and the grpc-proxy of etcd have none. With a
certificate it speaks TLS to clients; etcd behind it speaks plain, but for the gateway, which passes through what etcd
speaks.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.etcd_server import etcd_binary, free_ports
from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]

NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream etcd {{ server {etcd}; keepalive 32; }}
  server {{
    listen {listen} {tls} http2;
    {certificate}
    keepalive_timeout {idle}s;
    client_body_timeout {idle}s;
    grpc_read_timeout {idle}s;
    grpc_send_timeout {idle}s;
    client_max_body_size 2m;
    location / {{ grpc_pass grpc://etcd; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client {idle}s
  timeout server {idle}s
frontend clients
  bind {listen} {tls}
  default_backend etcd
backend etcd
  server etcd {etcd} proto h2
"""


class Proxy:
    """One proxy before the etcd at ``etcd`` (host:port)."""

    def __init__(
        self, kind: str, etcd: str, directory: Path, certificate: tuple[str, str] | None = None, idle_seconds: int = 600
    ) -> None:
        self.kind = kind
        self._etcd, self._directory, self._certificate = etcd, directory, certificate
        self._idle_seconds = idle_seconds
        [self._port] = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _command(self) -> list[str]:
        certificate = self._certificate
        common = {"directory": self._directory, "listen": self.endpoint, "etcd": self._etcd, "idle": self._idle_seconds}
        if self.kind == "nginx":
            files = f"ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};" if certificate else ""
            text = NGINX.format(**common, tls="ssl" if certificate else "", certificate=files)
            (self._directory / "nginx.conf").write_text(text)
            return [binary("nginx"), "-p", str(self._directory), "-c", "nginx.conf", "-e", "stderr"]
        if self.kind == "haproxy":
            if certificate:
                both = self._directory / "both.pem"
                both.write_text(Path(certificate[0]).read_text() + Path(certificate[1]).read_text())
            text = HAPROXY.format(**common, tls=f"ssl crt {both} alpn h2" if certificate else "proto h2")
            (self._directory / "haproxy.cfg").write_text(text)
            return [binary("haproxy"), "-db", "-f", str(self._directory / "haproxy.cfg")]
        if self.kind == "grpc-proxy":
            command = [etcd_binary(), "grpc-proxy", "start", f"--endpoints={self._etcd}"]
            command += [f"--listen-addr={self.endpoint}", f"--data-dir={self._directory}/data"]
            return command + ([f"--cert-file={certificate[0]}", f"--key-file={certificate[1]}"] if certificate else [])
        if self.kind == "gateway":
            return [etcd_binary(), "gateway", "start", f"--endpoints={self._etcd}", f"--listen-addr={self.endpoint}"]
        command = [sys.executable, "-m", "tests.integration.proxies.grpcio_forwarder", self.endpoint, self._etcd]
        return [*command, str(self._idle_seconds), *(certificate or ())]

    def start(self) -> Proxy:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        log = self._directory / f"{self.kind}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

        def listens() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"{self.kind} ended:\n{log.read_text(errors='replace')[-2000:]}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        wait_for(listens, f"{self.kind} listens", 30)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """End it politely, as a package's upgrade would; not all of them take notice of that in time."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def binary(name: str) -> str:
    """Where it is; raises FileNotFoundError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} (apt-get install {'nginx-light' if name == 'nginx' else name})")
    return found
