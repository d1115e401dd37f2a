"""Our own lock with greenlets for callers, as a gevent worker uses it."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

from benchmarks.peers.etcdlock import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1])
