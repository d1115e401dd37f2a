"""All deletions of places under the app's prefix, by one watch: see ``locking.deletion_watch``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.client import EtcdClient
from celery_etcdlock.etcd.errors import EtcdError
from celery_etcdlock.etcd.key_layout import Layout, end_of, names_deleted, watch_request
from celery_etcdlock.etcd.streaming_call import EtcdStream

QUIET_SECONDS = 1.0
LONGEST_WATCH_SECONDS = 3600.0


class EtcdDeletions:
    """``locking.deletion_watch.Deletions``. ``client`` is for its use alone; ``timeout_seconds`` bounds each call."""

    def __init__(self, client: EtcdClient, prefix: str, timeout_seconds: float) -> None:
        self._client = client
        self._start = Layout(prefix).locks
        self._timeout_seconds = timeout_seconds

    @contextmanager
    def open(self) -> Iterator[tuple[int, Iterator[tuple[int, set[str]]]]]:
        look = messages.RangeRequest(
            key=self._start, range_end=end_of(self._start), limit=1, keys_only=True
        ).SerializeToString()
        answer = self._client.call("/etcdserverpb.KV/Range", look, self._timeout_seconds, repeatable=True)
        revision = int(messages.RangeResponse.FromString(answer).header.revision)
        request = watch_request(self._start, revision, filters=[messages.WatchCreateRequest.NOPUT])
        try:
            with self._client.stream("/etcdserverpb.Watch/Watch", request, LONGEST_WATCH_SECONDS) as stream:
                yield revision, self._deletions(stream, revision)
        finally:
            self._client.close()

    def _deletions(self, stream: EtcdStream, revision: int) -> Iterator[tuple[int, set[str]]]:
        while not stream.ended:
            answer = stream.receive(QUIET_SECONDS)
            if answer is None:
                yield revision, set()
                continue
            response = messages.WatchResponse.FromString(answer)
            if response.canceled:
                raise EtcdError(f"the watch was cancelled: {response.cancel_reason or 'compacted'}")
            revision = max(revision, response.header.revision)
            yield revision, names_deleted(response.events, self._start)
