"""``celery etcdlock ls/show/release/watch/top`` on a real etcd; no worker is needed to read."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockLost
from celery_etcdlock.core.operations import FenceSession, GrantLease, TryAcquire
from celery_etcdlock.core.record import Delivery, KeyKind, Record
from celery_etcdlock.core.replies import SessionFenced
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.wiring import open_inspector
from tests.etcd_server import EtcdServer, free_ports
from tests.integration.cli.conftest import Run, run_on
from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]


def test_ls_says_who_holds_what(app: Celery, run: Run) -> None:
    assert run("ls").code == 0
    assert run("ls", "--json").json == []
    locks = EtcdLocks.from_app(app)
    with locks.lock("proj.a") as lock, locks.lock("invoice 7/x"):
        out = run("ls").out
        assert out.splitlines()[0].split() == ["LOCK", "OWNER", "TASK", "WHERE", "FOR", "TTL", "WAITING"]
        assert "proj.a" in out
        assert "invoice 7/x" in out
        (one,) = run("ls", "proj.*", "--json").json
        (owner,) = one["owners"]
        assert one["lock"] == "proj.a"
        assert owner["pid"] == os.getpid()
        assert owner["fencing_token"] == lock.fencing_token
        assert 0 < owner["ttl_seconds"] <= 3
        assert one["waiters"] == []


def test_show_names_owners_and_waiters_and_finds_by_task_id(app: Celery, run: Run) -> None:
    locks = EtcdLocks.from_app(app)
    with locks.lock("a"):

        def wait() -> None:
            with locks.lock("a", wait_timeout=20):
                pass

        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_for(lambda: run("ls", "--json").json[0]["waiters"], "somebody waits")
        shown = run("show", "a")
        assert "waiting 1   pid " in shown.out
        assert "no task" not in shown.out
        [record, _] = [key.record for key in locks.holders("a")]
        assert record is not None
        assert run("show", record.delivery.task_id).code == 0
    waiter.join(10)
    gone = run("show", "a")
    assert (gone.code, "no lock of this name" in gone.err) == (1, True)


def test_release_asks_and_then_waits_for_the_holder(app: Celery, run: Run) -> None:
    locks = EtcdLocks.from_app(app)
    with locks.lock("a"):
        refused = run("release", "a", answer="n\n")
        assert refused.code == 1
        assert "Ask that process to release it? Nothing interrupts it" in refused.out
        assert "nothing was done" in refused.err
        stays = run("release", "a", "--yes", "--timeout", "0.1")
        assert (stays.code, "still held" in stays.err) == (1, True)
    held = locks.lock("b")
    lock = held.__enter__()

    def let_go() -> None:
        while not lock.lost:
            time.sleep(0.01)
        held.__exit__(None, None, None)

    holder = threading.Thread(target=let_go)
    holder.start()
    released = run("release", "b", "--yes", "--timeout", "10")
    holder.join(10)
    assert (released.code, "b: released" in released.out) == (0, True)
    with pytest.raises(LockLost, match="asked its holder to release"):
        lock.check()


def test_release_by_force_deletes_at_once(app: Celery, run: Run) -> None:
    held = EtcdLocks.from_app(app).lock("a")
    lock = held.__enter__()
    assert "runs on BESIDE the next holder" in run("release", "a", "--force", answer="n\n").out
    assert run("release", "a", "--force", "--yes").code == 0
    assert run("ls", "--json").json == []
    wait_for(lambda: lock.lost, "the holder finds out")
    with pytest.raises(LockLost):
        held.__exit__(None, None, None)


def test_release_of_what_is_not_held_says_so(run: Run) -> None:
    ran = run("release", "nothing", "--yes")
    assert (ran.code, "no lock of this name is held" in ran.err) == (1, True)


def test_a_name_that_is_cut_in_etcd_can_be_released_by_what_ls_shows(app: Celery, run: Run) -> None:
    held = EtcdLocks.from_app(app).lock("long" * 100)
    held.__enter__()
    (one,) = run("ls", "--json").json
    assert run("release", one["lock"], "--force", "--yes").code == 0
    assert run("ls", "--json").json == []
    with pytest.raises(LockLost):
        held.__exit__(None, None, None)


def test_control_characters_in_a_name_do_not_reach_the_terminal(app: Celery, run: Run) -> None:
    with EtcdLocks.from_app(app).lock("evil\x1b]0;x\x07"):
        assert "\x1b" not in run("ls").out + run("show", "evil\x1b]0;x\x07").out


@pytest.mark.parametrize("command", [("ls",), ("show", "a"), ("release", "a"), ("watch",)])
def test_without_etcd_the_exit_code_is_three(new_app: Callable[..., Celery], command: tuple[str, ...]) -> None:
    ran = run_on(new_app(etcdlock_endpoints=f"127.0.0.1:{free_ports(1)[0]}", etcdlock_timeout=0.5), *command)
    assert (ran.code, "Connection refused" in ran.err) == (3, True)


def test_wrong_settings_and_a_store_without_a_view_are_usage_errors(new_app: Callable[..., Celery]) -> None:
    assert run_on(new_app(etcdlock_ttl="soon"), "ls").code == 2
    ran = run_on(new_app(etcdlock_endpoints="memory://"), "ls")
    assert (ran.code, "memory of each process" in ran.err) == (2, True)


@pytest.fixture
def celery_command(app: Celery, etcd: EtcdServer, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The real command, found by its entry point, as a process of its own."""
    (tmp_path / "cliproj.py").write_text(
        f"from celery import Celery\napp = Celery({app.main!r}, broker='memory://')\n"
        f"app.conf.etcdlock_endpoints = {etcd.endpoint!r}\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONUNBUFFERED": "1", "COLUMNS": "150"}
        command = [sys.executable, "-m", "celery", "-A", "cliproj", "etcdlock", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(command, env=environment, text=True, cwd=tmp_path, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_command_is_found_and_watch_tells_what_happens(
    app: Celery, celery_command: Callable[..., subprocess.Popen[str]]
) -> None:
    process = celery_command("watch", "--json")
    assert process.stdout is not None
    locks = EtcdLocks.from_app(app)
    stop = threading.Event()

    def keep_locking() -> None:
        while not stop.wait(0.05):
            with locks.lock("a"):
                pass

    worker = threading.Thread(target=keep_locking)
    worker.start()
    try:
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
    finally:
        stop.set()
        worker.join(10)
    assert {first["event"], second["event"]} == {"acquired", "released"}
    assert first["lock"] == second["lock"] == "a"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_top_draws_the_locks(app: Celery, celery_command: Callable[..., subprocess.Popen[str]]) -> None:
    pytest.importorskip("rich")
    terminal, its_end = pty.openpty()
    with EtcdLocks.from_app(app).lock("proj.shown"):
        process = celery_command("top", stdout=its_end)
        os.close(its_end)
        drawn = b""
        deadline = time.monotonic() + 20
        while b"proj.shown" not in drawn and select.select([terminal], [], [], deadline - time.monotonic())[0]:
            drawn += os.read(terminal, 10_000)
    assert b"1 lock held" in drawn
    assert b"proj.shown" in drawn
    process.send_signal(signal.SIGINT)
    while select.select([terminal], [], [], 10)[0]:
        try:
            os.read(terminal, 10_000)
        except OSError:
            break
    os.close(terminal)
    assert process.wait(10) == 0


def test_top_needs_a_terminal(run: Run) -> None:
    ran = run("top")
    assert (ran.code, "draws on a terminal" in ran.err) == (2, True)


def test_an_empty_list_says_where_it_looked_and_whether_anybody_was_ever_there(
    app: Celery, new_app: Callable[..., Celery], run: Run
) -> None:
    other = new_app()
    with EtcdLocks.from_app(other).lock("a"):
        never = run("ls")
        assert f"etcd at {app.conf.etcdlock_endpoints}, prefix /celery-etcdlock/{app.main}/" in never.err
        assert "No worker was ever started with this prefix" in never.err
        assert "Prefixes that are in use there: /celery-etcdlock/" in never.err
        assert f"prefix /celery-etcdlock/{other.main}/" in run_on(other, "ls").err
    inspector = open_inspector(EtcdLocks.from_app(app).settings)
    inspector.write_note(NoteKind.OPTIONS, "worker@host", "{}", 10)
    inspector.delete_note(NoteKind.OPTIONS, "worker@host")
    inspector.close()
    assert "No worker" not in run("ls").err


def test_a_release_says_that_nobody_renews_or_can_be_asked(app: Celery, run: Run) -> None:
    locks = EtcdLocks.from_app(app)
    store = locks.manager.store
    lease = 7_000_000 + os.getpid()
    store.perform(GrantLease(lease, 4), 5.0)
    fenced = store.perform(FenceSession(lease), 5.0)
    assert isinstance(fenced, SessionFenced)
    dead = Record(Delivery("id-of-dead"), "proj.t", "gone-host", 1, time.time(), about="account_id=7")
    claim = replace(dead, delivery=Delivery("queued"), kind=KeyKind.CLAIM, until=time.time() + 60)
    for name, record in (("dead", dead), ("claim", claim)):
        store.perform(TryAcquire(lease, fenced.epoch, name, "t", record), 5.0)
    assert "task id-of-dead (proj.t, account_id=7) on gone-host, pid 1" in run("show", "dead").out
    assert "ABOUT" in run("ls").out
    queued = run("release", "claim", "--yes")
    assert (queued.code, "nobody can be asked" in queued.err) == (1, True)
    still = run("release", "dead", "--yes", "--timeout", "0")
    assert (still.code, "Nobody has renewed it" in still.err) == (1, True)
    gone = run("release", "id-of-dead", "--yes", "--timeout", "30")
    assert (gone.code, "its lease ran out" in gone.out) == (0, True)


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
def test_a_timeout_that_is_none_is_a_usage_error(run: Run, seconds: str) -> None:
    assert run("release", "a", "--timeout", seconds).code == 2
