"""Where things lie in etcd, all under the app's prefix::

    {prefix}v1/{name}/{token}     a place under a lock's name: owners first, by create_revision; on its session's lease
    {prefix}session/{lease}       a session's own key; its mod_revision is the session's epoch
    {prefix}let-go/{lease}/{token}  somebody asks this session to let go of that key; on the session's lease
    {prefix}worker/{worker}       a worker's note of its tasks' options, for others to compare; on a lease of its own
    {prefix}waiting/{worker}      its note of how many messages wait in it without a queue position; likewise
    {prefix}replaced/{task id}    a mark that this queued task was replaced by a newer one; on the newer one's lease
    {prefix}done/{delivery}       a mark that this run of this call has come to its end; on a shared lease, for a while
    {prefix}used                  a worker was started with this prefix once; on no lease
    {prefix}beat/{name}/{entry}   what the holder of the beat's lock leaves for the next one; on no lease

Names are escaped (``core.name_escaping``), so that no name's range holds another's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import Delivery, decode_record
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.etcd import messages

KEYS_PER_PAGE = 1000

Compare = messages.Compare

#: A part of a transaction, by the names of its fields: protobuf makes a message of a whole tree of them in a third of
#: the time that one message in another takes.
Fields = dict[str, Any]


class Layout:
    """The keys of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.locks = f"{prefix}v1/".encode()
        self.sessions = f"{prefix}session/".encode()
        self.release_asks = f"{prefix}let-go/".encode()
        self.marks = f"{prefix}replaced/".encode()
        self.done = f"{prefix}done/".encode()
        self.saved_states = f"{prefix}beat/".encode()
        self.used = f"{prefix}used".encode()

    def notes(self, kind: NoteKind) -> bytes:
        """What the notes of this kind begin with, of all workers."""
        return self.prefix + kind.value.encode() + b"/"

    def note(self, kind: NoteKind, worker: str) -> bytes:
        return self.notes(kind) + escape_name(worker).encode()

    def session_key(self, lease: int) -> bytes:
        return self.sessions + f"{lease:x}".encode()

    def asked_start(self, lease: int) -> bytes:
        """What all keys begin with that ask a session to let go of a lock."""
        return self.release_asks + f"{lease:x}/".encode()

    def name_start(self, name: str) -> bytes:
        """What all keys under a lock's name begin with."""
        return self.locks + escape_name(name).encode() + b"/"

    def key(self, name: str, token: str) -> bytes:
        return self.name_start(name) + token.encode()

    def states_start(self, name: str) -> bytes:
        """What the keys of all states saved under ``name`` begin with; the rest is escaped (``core.name_escaping``)."""
        return self.saved_states + escape_name(name).encode() + b"/"

    def mark(self, task_id: str) -> bytes:
        return self.marks + escape_name(task_id).encode()

    def done_mark(self, delivery: Delivery) -> bytes:
        counts = f"{delivery.retries}.{delivery.replacements}.{delivery.comebacks}"
        call = "" if delivery.call is None else f":{delivery.call}"
        return self.done + escape_name(f"{delivery.task_id}:{counts}{call}").encode()


def end_of(start: bytes) -> bytes:
    """The end of the range of all keys that begin with ``start``, which ends in a slash."""
    return start[:-1] + b"0"


def unchanged(key: bytes, mod_revision: int) -> Fields:
    """Compare: the key is there as it was written at this revision, or isn't there at all (0)."""
    return {"key": key, "target": Compare.MOD, "result": Compare.EQUAL, "mod_revision": mod_revision}


def is_at(kvs: Sequence[Any], mod_revision: int) -> bool:
    """Whether the key that was read is there as it was written at this revision."""
    return bool(kvs) and bool(kvs[0].mod_revision == mod_revision)


def read(key: bytes, range_end: bytes = b"", *, keys_only: bool = False) -> Fields:
    """Request: read a key, or those from ``key`` up to ``range_end``."""
    return {"request_range": {"key": key, "range_end": range_end, "keys_only": keys_only}}


def put(key: bytes, value: bytes = b"", lease: int = 0) -> Fields:
    """Request: write a key."""
    return {"request_put": {"key": key, "value": value, "lease": lease}}


def delete(key: bytes) -> Fields:
    """Request: delete a key."""
    return {"request_delete_range": {"key": key}}


def pages(read_page: Callable[..., Any], start: bytes) -> Iterator[Any]:
    """All that begins with ``start``, by one revision. ``read_page`` takes the fields of a ``RangeRequest``."""
    key, revision = start, 0
    while True:
        page = read_page(key=key, range_end=end_of(start), limit=KEYS_PER_PAGE, revision=revision)
        yield page
        if not page.more:
            return
        revision = revision or page.header.revision
        key = page.kvs[-1].key + b"\0"


def watch_request(start: bytes, after_revision: int, *, deletions_only: bool = False, prev_kv: bool = False) -> bytes:
    """Request: watch a key, or all that begins with ``start`` if that ends in a slash, from after this revision."""
    end = end_of(start) if start.endswith(b"/") else b""
    create = messages.WatchCreateRequest(key=start, range_end=end, start_revision=after_revision + 1, prev_kv=prev_kv)
    if deletions_only:
        create.filters.append(messages.WatchCreateRequest.NOPUT)
    return bytes(messages.WatchRequest(create_request=create).SerializeToString())


def token_in(kv: Any, start: bytes) -> str:
    """The last part of a key that begins with ``start``."""
    token: str = kv.key[len(start) :].decode("utf-8", "replace")
    return token


def keys_in(kvs: Iterable[Any], start: bytes) -> tuple[Key, ...]:
    """The places under a name as they were read, in order of creation."""
    found = [
        Key(token_in(kv, start), kv.create_revision, kv.mod_revision, decode_record(kv.value), kv.lease) for kv in kvs
    ]
    return tuple(sorted(found, key=lambda key: key.create_revision))
