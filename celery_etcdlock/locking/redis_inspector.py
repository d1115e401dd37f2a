"""The operator's view of locks in a Redis: all keys under the prefix, read again and again.

Redis has no watch: ``changes`` reads all locks once a second and compares. A snapshot isn't one moment's, since Redis
reads one key after the other; what is deleted or asked compares revisions, as everywhere, so a view that is late does
no harm.
The layout is that of ``redis_store.lua``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from redis import exceptions

from celery_etcdlock.core.lock_table import Change, KeyEntry, Traces
from celery_etcdlock.core.name_escaping import escape_name
from celery_etcdlock.core.operations import AskToRelease, Release
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import decode_record
from celery_etcdlock.core.replies import Asked, Released
from celery_etcdlock.core.worker_notes import MOST_NOTE_BYTES, NoteKind
from celery_etcdlock.locking.redis_store import RedisStore, unavailable

POLL_SECONDS = 1.0
KEYS_PER_SCAN = 1000

_glob_special = re.compile(r"([*?\[\]\\^-])")


class RedisInspector:
    """See ``locking.inspector.Inspector``. ``client`` is a ``redis.Redis`` whose calls have a time-out."""

    def __init__(self, client: Any, store: RedisStore, prefix: str, timeout_seconds: float) -> None:
        self._client = client
        self._store = store
        self._prefix = prefix
        self._timeout_seconds = timeout_seconds
        #: What was seen last, to compare with.
        self._last_seen: dict[tuple[str, str], KeyEntry] = {}

    def snapshot(self) -> tuple[list[KeyEntry], int]:
        revision = self.revision()
        entries = self._entries()
        self._last_seen = {(entry.name, entry.key.token): entry for entry in entries}
        return entries, revision

    def ttls(self, leases: Iterable[int]) -> dict[int, float]:
        left = self._each("pttl", "lease/", {str(lease) for lease in leases})
        return {int(lease): ms / 1000 for lease, ms in left.items() if ms > 0}

    def changes(self, after_revision: int) -> Iterator[list[Change] | None]:
        while True:
            before = self._last_seen
            self.snapshot()
            now = self._last_seen
            changes = [Change(entry, True) for key, entry in before.items() if key not in now]
            changes += [Change(entry, False) for key, entry in now.items() if before.get(key) != entry]
            yield changes or None
            time.sleep(POLL_SECONDS)

    def revision(self) -> int:
        with self._asking() as client:
            return int(client.get(f"{self._prefix}revision") or 0)

    def deletions(self, after_revision: int) -> Iterator[set[str]]:
        for changes in self.changes(after_revision):
            yield {change.entry.segment for change in changes or () if change.gone}

    def ask_to_release(self, entry: KeyEntry, by: str) -> bool:
        ask = AskToRelease(entry.name, entry.key.token, entry.key.mod_revision, by)
        return isinstance(self._store.perform(ask, self._timeout_seconds), Asked)

    def is_there(self, entry: KeyEntry) -> bool:
        token, revision = entry.key.token, entry.key.mod_revision
        return any((one.key.token, one.key.mod_revision) == (token, revision) for one in self._entries({entry.name}))

    def delete(self, entry: KeyEntry) -> bool:
        release = Release(entry.name, entry.key.token, entry.key.mod_revision)
        return isinstance(self._store.perform(release, self._timeout_seconds), Released)

    def notes(self, kind: NoteKind) -> dict[str, str]:
        return {
            worker: text.decode("utf-8", "replace")
            for worker, text in self._each("get", f"{kind.value}/").items()
            if text is not None and len(text) <= MOST_NOTE_BYTES
        }

    def write_note(self, kind: NoteKind, worker: str, text: str, seconds: int) -> None:
        with self._asking() as client:
            client.set(f"{self._prefix}{kind.value}/{worker}", text.encode(), ex=seconds)
            client.set(f"{self._prefix}used", b"")

    def delete_note(self, kind: NoteKind, worker: str) -> None:
        with self._asking() as client:
            client.delete(f"{self._prefix}{kind.value}/{worker}")

    def saved_states(self) -> dict[str, dict[str, bytes]]:
        return {
            name: {key.decode("utf-8", "replace"): value.partition(b":")[2] for key, value in states.items()}
            for name, states in self._each("hgetall", "beat/").items()
        }

    def traces(self) -> Traces:
        with self._asking() as client:
            return Traces(used=bool(client.exists(f"{self._prefix}revision", f"{self._prefix}used")))

    def close(self) -> None:
        self._client.connection_pool.disconnect()
        self._store.close()

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """A client. Raises ``LockUnavailable`` for whatever it raises."""
        try:
            yield self._client
        except (exceptions.RedisError, OSError) as error:
            raise unavailable(error) from error

    def _each(self, command: str, kind: str, names: Iterable[str] | None = None) -> dict[str, Any]:
        """What ``command`` tells of these keys of one kind, by their names; without ``names``, of all there are."""
        start = f"{self._prefix}{kind}"
        with self._asking() as client:
            if names is None:
                pattern = _glob_special.sub(r"\\\1", start) + "*"
                keys = client.scan_iter(match=pattern, count=KEYS_PER_SCAN)
                names = {bytes(key).decode("utf-8", "surrogateescape")[len(start) :] for key in keys}
            in_order = sorted(names)
            pipeline = client.pipeline(transaction=False)
            for name in in_order:
                getattr(pipeline, command)((start + name).encode("utf-8", "surrogateescape"))
            return dict(zip(in_order, pipeline.execute(), strict=True))

    def _entries(self, names: Iterable[str] | None = None) -> list[KeyEntry]:
        """Those whose lease hasn't run out; the store itself deletes the others when it comes across them."""
        entries = [
            entry
            for name, tokens in self._each("hgetall", "v1/", names).items()
            for token, value in tokens.items()
            if (entry := _key_entry(name, token, value)) is not None
        ]
        alive = self.ttls(entry.key.lease for entry in entries)
        return [entry for entry in entries if entry.key.lease in alive]


def _key_entry(name: str, token: bytes, value: bytes) -> KeyEntry | None:
    match value.split(b":", 3):
        case [create, mod, lease, record] if create.isdigit() and mod.isdigit() and lease.isdigit() and name:
            key = Key(token.decode("utf-8", "replace"), int(create), int(mod), decode_record(record), int(lease))
            return KeyEntry(name, escape_name(name), key)
    return None
