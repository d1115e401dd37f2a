"""Notices that etcd isn't the one it was: another cluster answers, or one whose revisions went back.

Each is a mistake that would give one lock to two: endpoints of two clusters in one setting, each of which knows nothing
of the other's locks; or a snapshot restored without ``--bump-revision``, whose fencing tokens have been given out
before. A process can tell by what it has seen itself. It refuses to go on, for nobody can say which of the two is
right; it starts anew when it is restarted.
"""

from __future__ import annotations

from typing import Any

from celery_etcdlock.etcd.errors import OtherCluster, RevisionsWentBack


class ClusterIdentity:
    """What one process has seen of its etcd. Safe for use from many threads."""

    def __init__(self) -> None:
        self._cluster = 0
        self._revision = 0

    @property
    def revision(self) -> int:
        """The newest revision seen; to be asked before a request is sent, as others' answers may overtake it."""
        return self._revision

    def check(self, header: Any, newest_before: int, *, linearizable: bool) -> None:
        """Raise ``OtherCluster`` or ``RevisionsWentBack``. Only linearizable answers say how new the whole etcd is."""
        cluster: int = header.cluster_id
        if self._cluster == 0:
            self._cluster = cluster
        elif cluster != self._cluster:
            raise OtherCluster(
                f"an etcd of another cluster answered ({cluster:x}, not {self._cluster:x}), which knows nothing of our "
                "locks: name the members of one cluster in etcdlock_endpoints; if etcd was set up anew on purpose, "
                "restart the workers",
                maybe_applied=True,
                permanent=True,
            )
        if not linearizable:
            return
        revision: int = header.revision
        if revision < newest_before:
            raise RevisionsWentBack(
                f"etcd's revisions went back, from {newest_before} to {revision}: if a snapshot was restored, restore "
                "it with --bump-revision, or fencing tokens are given out twice; then restart the workers",
                maybe_applied=True,
                permanent=True,
            )
        self._revision = max(self._revision, revision)
