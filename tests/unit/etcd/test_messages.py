from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import EtcdError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_messages_in_a_fresh_interpreter() -> None:
    done = subprocess.run([sys.executable, HERE / "messages_check.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")


def test_descriptor_set_is_not_stale() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development tool")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_messages.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_message_that_the_package_names_is_one() -> None:
    package = ROOT / "celery_etcdlock"
    names = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"\bmessages\.([A-Z]\w+)", path.read_text("utf-8"))
    }
    assert {"TxnRequest", "Compare", "LeaseKeepAliveRequest"} <= names
    for name in names:
        assert getattr(messages, name) is not None, name
    with pytest.raises(AttributeError, match="no message 'TxnReqest'"):
        messages.TxnReqest  # noqa: B018


def test_a_reply_that_is_none_is_an_error_of_etcds() -> None:
    with pytest.raises(EtcdError, match="isn't a TxnResponse") as caught:
        messages.decoded(messages.TxnResponse, b"\xff\xff")
    assert caught.value.maybe_applied
