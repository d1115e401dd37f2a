"""Our own lock over a channel of grpcio (``etcdlock_channel``) in place of our transport."""

from __future__ import annotations

import sys

import grpc

from benchmarks.peers.etcdlock import main

if __name__ == "__main__":
    main(sys.argv[1], etcdlock_channel=lambda: grpc.insecure_channel(sys.argv[1]))
