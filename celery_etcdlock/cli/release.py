"""``celery etcdlock release``: free a lock, gently unless told otherwise.

Gently: the holder is asked to let go. Its process learns it with its next renewal, within a third of the TTL, and
interrupts the task as if the lock were lost (``on_lock_lost``); the task's ``finally`` releases, and only then another
gets the lock. With ``--force`` the key is deleted: the lock is free at once, and whatever its holder does until it
finds out runs beside the next holder.
"""

from __future__ import annotations

import getpass
import socket
import time

import click

from celery_etcdlock.cli.common import NOT_DONE, fail, inspecting, lock_table_of
from celery_etcdlock.cli.show import described_owner
from celery_etcdlock.cli.table import printable
from celery_etcdlock.core.lock_table import KeyEntry, LockEntry
from celery_etcdlock.locking.inspector import Inspector

__all__ = ["command", "wait_until_gone", "who_asks"]

POLL_SECONDS = 0.2


@click.command(name="release")
@click.argument("name_or_task_id")
@click.option("--force", is_flag=True, help="Delete the key at once. The holder may go on beside the next one.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option(
    "--timeout", "timeout_seconds", type=float, default=60.0, show_default=True, help="Seconds to wait for the holder."
)
@click.pass_context
def command(context: click.Context, name_or_task_id: str, force: bool, yes: bool, timeout_seconds: float) -> None:
    """Free a lock, by its name or the id of the task that holds it.

    The holder is asked to let go: within a third of the lock's TTL its task is interrupted with LockLost (or only told,
    with on_lock_lost="flag"), and the lock is free when it has let go. --force doesn't wait for that.
    """
    with inspecting(context) as inspector:
        entries = _places(lock_table_of(inspector).find(name_or_task_id), name_or_task_id)
        if not entries:
            fail(f"no lock of this name is held, and no task of this id holds one: {name_or_task_id}", NOT_DONE)
        if not yes:
            for entry in entries:
                click.echo(f"lock {printable(entry.name)} is held by {described_owner(entry)}")
            what = (
                "Delete it at once? If that task still runs, it runs on BESIDE the next holder until it finds out."
                if force
                else "Ask that task to let go? It is interrupted with LockLost, and the lock is free once it has ended."
            )
            if not click.confirm(what):
                fail("nothing was done", NOT_DONE)
        done = [_free(inspector, entry, timeout_seconds, force=force) for entry in entries]
    if not all(done):
        raise SystemExit(NOT_DONE)


def _places(locks: list[LockEntry], name_or_task_id: str) -> list[KeyEntry]:
    owners = [owner for lock in locks for owner in lock.owners]
    if any(lock.name == name_or_task_id for lock in locks):
        return owners
    return [o for o in owners if o.key.record is not None and o.key.record.delivery.task_id == name_or_task_id]


def _free(inspector: Inspector, entry: KeyEntry, timeout_seconds: float, *, force: bool) -> bool:
    name = printable(entry.name)
    if force:
        deleted = inspector.delete(entry)
        click.echo(f"{name}: deleted" if deleted else f"{name}: its holder let go before it was deleted")
        return True
    if not inspector.ask_to_release(entry, who_asks()):
        if inspector.is_there(entry):
            click.echo(f"{name}: nobody renews it, so nobody can be asked: use --force", err=True)
            return False
        click.echo(f"{name}: its holder let go by itself")
        return True
    click.echo(f"{name}: asked its holder to let go; waiting up to {timeout_seconds:g} s")
    if wait_until_gone(inspector, entry, timeout_seconds):
        click.echo(f"{name}: released")
        return True
    click.echo(
        f"{name}: still held. It was asked, and may yet let go; a task with on_lock_lost='flag', or one that catches "
        "LockLost, ends when it likes. --force deletes the key.",
        err=True,
    )
    return False


def wait_until_gone(inspector: Inspector, entry: KeyEntry, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while inspector.is_there(entry):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def who_asks() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
