"""``celery etcdlock release``: free a lock, gently by default.

Gently: the holder is asked to release it. Its process reads that with its next renewal, within a third of the TTL. A
task is interrupted as if the lock were lost (``on_lock_lost``), its ``finally`` releases, and only then another gets
the lock. A holder without a task only sees it (``held.lost``, ``on_lost``): nothing can interrupt it. What no process
renews (a queued message's lock, a window) has nobody to ask: delete it, or let it expire.

With ``--force`` the key is deleted: the lock is free at once, and until its holder finds out it runs beside the next.

*A holder on a dead host* can't answer, but nobody renews its lease: the lock is free when that expires.
"""

from __future__ import annotations

import math
import time

import click

from celery_etcdlock.app.celery_settings import host_name, user_name
from celery_etcdlock.cli.common import NOT_DONE, fail, fail_not_found, inspecting, lock_table_of
from celery_etcdlock.cli.show import described_owner
from celery_etcdlock.cli.table import duration
from celery_etcdlock.core.description import holder_kind
from celery_etcdlock.core.key_kinds import written_by_a_process
from celery_etcdlock.core.lock_table import KeyEntry, LockTable
from celery_etcdlock.core.printable import printable
from celery_etcdlock.locking.inspector import Inspector

POLL_SECONDS = 0.2


def _seconds(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if math.isnan(value) or value < 0:
        raise click.BadParameter("a number of seconds, 0 or more")
    return value


@click.command(name="release")
@click.argument("name_or_task_id")
@click.option("--force", is_flag=True, help="Delete the key at once. The holder may go on beside the next one.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=float,
    default=60.0,
    show_default=True,
    callback=_seconds,
    help="Seconds to wait for the holder.",
)
@click.pass_context
def command(context: click.Context, name_or_task_id: str, force: bool, yes: bool, timeout_seconds: float) -> None:
    """Free a lock, by its name or the id of the task that holds it.

    The holder is asked to release it, which it learns within a third of the lock's TTL. A task is interrupted with
    LockLost (or only told, with on_lock_lost="flag"); a holder without a task is only told. The lock is free once its
    holder has released it. --force doesn't wait for that.
    """
    with inspecting(context) as (inspector, place):
        entries = _entries(lock_table_of(inspector), name_or_task_id)
        if not entries:
            fail_not_found(inspector, place, name_or_task_id)
        if not yes:
            for entry in entries:
                click.echo(f"lock {printable(entry.name)} is held by {described_owner(entry)}")
            if not click.confirm(" ".join(dict.fromkeys(_question(entry, force=force) for entry in entries))):
                fail("nothing was done", NOT_DONE)
        done = [_free(inspector, entry, timeout_seconds, force=force) for entry in entries]
    if not all(done):
        raise SystemExit(NOT_DONE)


def _entries(table: LockTable, name_or_task_id: str) -> list[KeyEntry]:
    """The owners to be freed. Ends the command where it isn't clear which lock is meant."""
    named = table.named(name_or_task_id)
    if len(named) > 1:
        ids = ", ".join(sorted({_id(owner) for lock in named for owner in lock.owners}))
        fail(f"{len(named)} locks are shown by this name: give the id of the task that holds yours: {ids}", NOT_DONE)
    if named:
        return list(named[0].owners)
    owners = [owner for lock in table.of_task(name_or_task_id) for owner in lock.owners]
    return [owner for owner in owners if _id(owner) == printable(name_or_task_id)]


def _id(entry: KeyEntry) -> str:
    return "unreadable" if entry.key.record is None else printable(entry.key.record.delivery.task_id)


def _is_of_task(entry: KeyEntry) -> bool:
    """Whether a task holds it, which can be interrupted."""
    return entry.key.record is not None and holder_kind(entry.key.record) == "task"


def _question(entry: KeyEntry, *, force: bool) -> str:
    if not written_by_a_process(entry.key):
        if force:
            return "Delete it at once? No process holds it. If its task still runs, it has no lock then."
        return "No process holds it, so nobody can be asked: only --force frees it before its time. Go on?"
    if force:
        runs = "task" if _is_of_task(entry) else "process"
        return f"Delete it at once? If that {runs} still runs, it runs on BESIDE the next holder until it finds out."
    if _is_of_task(entry):
        return (
            "Ask that task to release it? It is interrupted with LockLost (with on_lock_lost='flag' it is only told), "
            "and the lock is free once it has ended."
        )
    return "Ask that process to release it? Nothing interrupts it: the lock is free once it has released it by itself."


def _free(inspector: Inspector, entry: KeyEntry, timeout_seconds: float, *, force: bool) -> bool:
    name = printable(entry.name)
    if force:
        deleted = inspector.delete(entry)
        click.echo(f"{name}: deleted" if deleted else f"{name}: its holder released it before it was deleted")
        return True
    if not written_by_a_process(entry.key):
        click.echo(f"{name}: {_who_may_end_it(entry)}", err=True)
        return False
    if not inspector.ask_to_release(entry, f"{user_name()}@{host_name()}"):
        if inspector.is_there(entry):
            click.echo(f"{name}: nobody renews it, so nobody can be asked: use --force", err=True)
            return False
        click.echo(f"{name}: its holder released it by itself")
        return True
    click.echo(f"{name}: asked its holder to release it; waiting up to {timeout_seconds:g} s")
    watch = _Renewals(inspector, entry)
    if watch.wait_until_gone(timeout_seconds):
        click.echo(f"{name}: {'its lease ran out, its holder was gone' if watch.ran_out else 'released'}")
        return True
    click.echo(f"{name}: still held. {watch.verdict()}", err=True)
    return False


def _who_may_end_it(entry: KeyEntry) -> str:
    record = entry.key.record
    until = "" if record is None or record.until is None else f" in {duration(max(0.0, record.until - time.time()))}"
    task = "" if record is None else f" `celery control revoke {_id(entry)}` ends what is queued;"
    return f"no process holds it, so nobody can be asked.{task} --force deletes the key; it ends by itself{until}"


class _Renewals:
    """Watches whether the holder renews its lease while it is waited for."""

    def __init__(self, inspector: Inspector, entry: KeyEntry) -> None:
        self._inspector = inspector
        self._entry = entry
        self._began = self._looked_at = time.monotonic()
        self._ttl: float | None = None
        self._renewed = False

    def wait_until_gone(self, timeout_seconds: float) -> bool:
        lease = self._entry.key.lease
        while True:
            now, ttl = time.monotonic(), self._inspector.ttls([lease]).get(lease)
            if ttl is not None:
                self._renewed = self._renewed or (self._ttl is not None and ttl > self._ttl)
                self._ttl, self._looked_at = ttl, now
            if not self._inspector.is_there(self._entry):
                return True
            if now >= self._began + timeout_seconds:
                return False
            time.sleep(POLL_SECONDS)

    @property
    def ran_out(self) -> bool:
        """Whether the key is gone because its lease is, not because somebody released it."""
        return not self._renewed and self._ttl is not None and time.monotonic() - self._looked_at >= self._ttl

    def verdict(self) -> str:
        """Why the lock is still held, as far as it can be seen."""
        if not self._renewed and self._ttl is not None:
            return (
                f"Nobody has renewed it for {duration(time.monotonic() - self._began)}, and a living holder does so "
                f"within a third of its TTL: if its host is gone, the lock is free in {duration(self._ttl)}, or now by "
                "--force."
            )
        if _is_of_task(self._entry):
            return (
                "Its holder lives and was asked; a task with on_lock_lost='flag', or one that catches LockLost, ends "
                "when it likes. --force deletes the key."
            )
        return (
            "Its process lives and was asked (held.lost, on_lost); it releases when it likes. --force deletes the key."
        )
