"""The operator's view of an etcd: every key under our prefix, in one view and then by a watch."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from celery_etcdlock.core.lock_table import Change, KeyEntry, SnapshotOutdated, Traces
from celery_etcdlock.core.name_escaping import unescape_name
from celery_etcdlock.core.operations import RevokeLease
from celery_etcdlock.core.ownership import Key
from celery_etcdlock.core.record import decode_record
from celery_etcdlock.core.replies import Asked
from celery_etcdlock.core.worker_notes import MOST_NOTE_BYTES, NoteKind
from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import Compacted, EtcdError, LeaseNotFound, PermissionDenied
from celery_etcdlock.etcd.etcd_store import EtcdStore
from celery_etcdlock.etcd.key_layout import Layout, delete, end_of, is_at, pages, token_in, unchanged, watch_request

#: Where apps have their prefix unless ``etcdlock_prefix`` says otherwise, and how many of them are named at most.
DEFAULT_PLACE = b"/celery-etcdlock/"
MOST_OTHERS = 5
QUIET_SECONDS = 1.0
LONGEST_WATCH_SECONDS = 3600.0


class EtcdInspector:
    """See ``locking.inspector.Inspector``. ``timeout_seconds`` bounds each call."""

    def __init__(self, client: EtcdClient, prefix: str, timeout_seconds: float) -> None:
        self._client = client
        self._store = EtcdStore(client, prefix)
        self._layout = Layout(prefix)
        self._start = self._layout.locks
        self._timeout_seconds = timeout_seconds
        #: The lease of each note that was written here, and when it ends at the earliest, by the monotonic clock.
        self._note_leases: dict[bytes, tuple[int, float]] = {}

    def snapshot(self) -> tuple[list[KeyEntry], int]:
        entries: list[KeyEntry] = []
        revision = 0
        for page in pages(self._read, self._start):
            revision = revision or page.header.revision
            entries += [entry for kv in page.kvs if (entry := self._key_entry(kv)) is not None]
        return entries, revision

    def ttls(self, leases: Iterable[int]) -> dict[int, float]:
        found = {}
        for lease in {lease for lease in leases if lease}:
            reply = self._ask(messages.LeaseTimeToLiveRequest(ID=lease))
            if reply.TTL > 0:
                found[lease] = float(reply.TTL)
        return found

    def revision(self) -> int:
        return int(self._read(key=self._start, range_end=end_of(self._start), limit=1, keys_only=True).header.revision)

    def changes(self, after_revision: int) -> Iterator[list[Change] | None]:
        for _, events in self._events(after_revision, prev_kv=True):
            changes = [change for event in events if (change := self._change(event)) is not None]
            if changes or not events:
                yield changes or None

    def deletions(self, after_revision: int) -> Iterator[set[str]]:
        for _, names in self._deletions(after_revision):
            yield names

    @contextmanager
    def open(self) -> Iterator[tuple[int, Iterator[tuple[int, set[str]]]]]:
        """All deletions from now on: see ``locking.deletion_watch.Deletions``."""
        with closing(self):
            revision = self.revision()
            with closing(self._deletions(revision)) as deletions:
                try:
                    yield revision, deletions
                except SnapshotOutdated as error:
                    raise EtcdError(str(error)) from error

    def _deletions(self, after_revision: int) -> Generator[tuple[int, set[str]], None, None]:
        with closing(self._events(after_revision, deletions_only=True)) as found:
            for revision, events in found:
                yield revision, {token_in(event.kv, self._start).rpartition("/")[0] for event in events}

    def _events(self, after_revision: int, **options: bool) -> Generator[tuple[int, list[Any]], None, None]:
        """Until which revision, and the events as they come; none about once a second when nothing does."""
        while True:
            request = watch_request(self._start, after_revision, **options)
            with self._client.stream(messages.WATCH, request, LONGEST_WATCH_SECONDS) as stream:
                answered = False
                while not stream.ended:
                    answer = stream.receive(QUIET_SECONDS)
                    if answer is None:
                        yield after_revision, []
                        continue
                    answered = True
                    response = messages.decoded(messages.WatchResponse, answer)
                    if response.compact_revision:
                        raise SnapshotOutdated(f"revision {after_revision + 1} was compacted meanwhile")
                    if response.canceled:
                        raise EtcdError(f"the watch was cancelled: {response.cancel_reason}")
                    after_revision = max(after_revision, response.header.revision)
                    if response.events:
                        yield after_revision, list(response.events)
                if not answered:
                    raise EtcdError("the server ended the watch before it began")  # as it may the next one, for ever

    def ask_to_release(self, entry: KeyEntry, by: str) -> bool:
        asked = self._store.ask_holder(self._key(entry), entry.key.mod_revision, by, self._timeout_seconds)
        return isinstance(asked, Asked)

    def is_there(self, entry: KeyEntry) -> bool:
        return is_at(self._read(key=self._key(entry), keys_only=True).kvs, entry.key.mod_revision)

    def delete(self, entry: KeyEntry) -> bool:
        key = self._key(entry)
        request = messages.TxnRequest(compare=[unchanged(key, entry.key.mod_revision)], success=[delete(key)])
        return bool(self._ask(request).succeeded)

    def notes(self, kind: NoteKind) -> dict[str, str]:
        start = self._layout.notes(kind)
        return {
            unescape_name(token_in(kv, start)): kv.value.decode("utf-8", "replace")
            for kv in self._read(key=start, range_end=end_of(start)).kvs
            if len(kv.value) <= MOST_NOTE_BYTES
        }

    def write_note(self, kind: NoteKind, worker: str, text: str, seconds: int) -> None:
        key, now = self._layout.note(kind, worker), time.monotonic()
        if key not in self._note_leases:
            self._ask(messages.PutRequest(key=self._layout.used))
        # Most notes change more often than their time runs out: one lease serves several.
        lease, until = self._note_leases.get(key, (0, now))
        if until - now >= seconds / 2:
            with suppress(LeaseNotFound):
                self._put_note(key, text, lease)
                return
        lease = self._ask(messages.LeaseGrantRequest(TTL=seconds)).ID
        self._note_leases[key] = lease, now + seconds
        self._put_note(key, text, lease)

    def _put_note(self, key: bytes, text: str, lease: int) -> None:
        self._ask(messages.PutRequest(key=key, value=text.encode(), lease=lease))

    def traces(self) -> Traces:
        own = self._layout.prefix
        if self._read(key=own, range_end=end_of(own), limit=1, keys_only=True).kvs:
            return Traces(used=True)
        try:
            return Traces(used=False, others=tuple(self._other_prefixes()))
        except PermissionDenied:
            return Traces(used=False)

    def _other_prefixes(self) -> Iterator[str]:
        """The first apps under the default place for prefixes, one request for each."""
        start, end = DEFAULT_PLACE, end_of(DEFAULT_PLACE)
        for _ in range(MOST_OTHERS):
            found = self._read(key=start, range_end=end, limit=1, keys_only=True).kvs
            app, slash, _ = found[0].key[len(DEFAULT_PLACE) :].partition(b"/") if found else (b"", b"", b"")
            if not slash:
                return
            prefix = DEFAULT_PLACE + app + slash
            yield prefix.decode("utf-8", "replace")
            start = end_of(prefix)

    def delete_note(self, kind: NoteKind, worker: str) -> None:
        key = self._layout.note(kind, worker)
        self._ask(messages.DeleteRangeRequest(key=key))
        lease, _ = self._note_leases.pop(key, (0, 0.0))
        if lease:
            self._store.perform(RevokeLease(lease), self._timeout_seconds)

    def saved_states(self) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for page in pages(self._read, self._layout.saved_states):
            for kv in page.kvs:
                segment, _, key = token_in(kv, self._layout.saved_states).partition("/")
                found.setdefault(unescape_name(segment), {})[key] = kv.value
        return found

    def close(self) -> None:
        self._client.close()

    def _key(self, entry: KeyEntry) -> bytes:
        return self._start + f"{entry.segment}/{entry.key.token}".encode()

    def _key_entry(self, kv: Any) -> KeyEntry | None:
        segment, slash, token = token_in(kv, self._start).rpartition("/")
        if not slash:
            return None
        key = Key(token, kv.create_revision, kv.mod_revision, decode_record(kv.value), kv.lease)
        return KeyEntry(unescape_name(segment), segment, key)

    def _change(self, event: Any) -> Change | None:
        gone = event.type == messages.Event.DELETE
        kv = event.prev_kv if gone and event.prev_kv.key else event.kv
        entry = self._key_entry(kv)
        return None if entry is None else Change(entry, gone)

    def _read(self, **fields: Any) -> Any:
        return self._ask(messages.RangeRequest(**fields))

    def _ask(self, request: Any) -> Any:
        try:
            return messages.ask(self._client, request, self._timeout_seconds)
        except Compacted as error:
            raise SnapshotOutdated(str(error)) from error
