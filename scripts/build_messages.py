"""Compile celery_etcdlock/etcd/etcd.proto to the descriptor set that is shipped (needs grpcio-tools).

python scripts/build_messages.py            # write etcd.binpb
python scripts/build_messages.py --check    # fail when etcd.binpb is stale
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

DIRECTORY = Path(__file__).resolve().parent.parent / "celery_etcdlock" / "etcd"


def compiled() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "etcd.binpb")
        status = protoc.main(["protoc", f"-I{DIRECTORY}", f"--descriptor_set_out={output}", "etcd.proto"])
        if status != 0:
            raise SystemExit(status)
        return output.read_bytes()


def main() -> None:
    shipped = DIRECTORY / "etcd.binpb"
    if "--check" in sys.argv[1:]:
        if shipped.read_bytes() != compiled():
            raise SystemExit("etcd.binpb doesn't match etcd.proto: run python scripts/build_messages.py")
        return
    shipped.write_bytes(compiled())


if __name__ == "__main__":
    main()
