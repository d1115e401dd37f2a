"""A holder that was paused for longer than its lock lived can't overwrite what its successor wrote.

No lock can hold back a process that was stopped between its last check and its write. Its fencing token can: the
database keeps the highest one that it has seen beside the row, and refuses lower ones. SQLAlchemy on SQLite;
DATABASE_URL names another database, such as postgresql+psycopg://...
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event

from celery import Celery
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, select, update

from celery_etcdlock import EtcdLocks
from examples.support import expect, folder, say

TTL_SECONDS = 2
app = Celery("fenced_writes")
documents = Table(
    "fenced_documents",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("text", String(200), nullable=False),
    Column("fence", Integer, nullable=False),
)


def database_url() -> str:
    return os.environ.get("DATABASE_URL") or f"sqlite:///{folder() / 'documents.db'}"


def save(text: str, fencing_token: int) -> bool:
    """Write, unless somebody with a higher token has written already."""
    statement = (
        update(documents)
        .where(documents.c.id == 1, documents.c.fence <= fencing_token)
        .values(text=text, fence=fencing_token)
    )
    with create_engine(database_url()).begin() as connection:
        return connection.execute(statement).rowcount == 1


def slow_writer(checked: Event, result: Event) -> None:
    with EtcdLocks.from_app(app).lock("document 1", lock_ttl=TTL_SECONDS) as lock:
        lock.check()
        checked.set()
        # Here it is stopped: a long garbage collection, a suspended machine, a debugger ...
        time.sleep(0.5)
        # ... and it goes on without looking again.
        if save("from the slow one", lock.fencing_token):
            result.set()


def main() -> None:
    engine = create_engine(database_url())
    documents.drop(engine, checkfirst=True)
    documents.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(documents).values(id=1, text="", fence=0))
    start_fresh = multiprocessing.get_context("spawn")
    checked, written = start_fresh.Event(), start_fresh.Event()
    slow = start_fresh.Process(target=slow_writer, args=(checked, written), daemon=True)
    slow.start()
    assert slow.pid is not None
    expect(checked.wait(30), "the first holder has checked its lock")
    os.kill(slow.pid, signal.SIGSTOP)
    say("The first holder is stopped, just before it writes.")
    try:
        with EtcdLocks.from_app(app).lock("document 1", lock_ttl=TTL_SECONDS, wait_timeout=30) as lock:
            say(f"Its lock ran out. The second holder has it, with fencing token {lock.fencing_token}, and writes.")
            expect(save("from the second one", lock.fencing_token), "the second holder's write was taken")
    finally:
        os.kill(slow.pid, signal.SIGCONT)
    say("The first holder goes on and writes, too late.")
    slow.join(30)
    expect(not written.is_set(), "the late write was refused")
    with engine.connect() as connection:
        text = connection.execute(select(documents.c.text)).scalar_one()
    documents.drop(engine)
    expect(text == "from the second one", f"the document is {text!r}")
