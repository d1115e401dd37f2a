"""The e2e tests' judge must be able to say no."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.evidence import Evidence


def evidence(tmp_path: Path, *events: tuple[str, int, float]) -> Evidence:
    lines = [
        json.dumps({"event": kind, "token": token, "at": at, "host": f"host{token}", "name": "a"}) + "\n"
        for kind, token, at in events
    ]
    (tmp_path / "bodies").write_text("".join(lines) + '{"event": "enter", "tok')
    return Evidence(tmp_path)


def test_one_after_the_other(tmp_path: Path) -> None:
    found = evidence(tmp_path, ("enter", 1, 1.0), ("believed", 1, 2.0), ("enter", 2, 3.0), ("exit", 1, 9.0))
    assert found.overlaps() == []


def test_a_holder_that_believes_after_the_next_one_entered(tmp_path: Path) -> None:
    found = evidence(tmp_path, ("enter", 1, 1.0), ("enter", 2, 3.0), ("believed", 1, 3.5))
    assert found.overlaps() == ["a: host1 believed for 0.500 s after host2 entered"]


def test_tokens_against_the_order_of_time(tmp_path: Path) -> None:
    assert evidence(tmp_path, ("enter", 2, 1.0), ("enter", 1, 3.0)).overlaps() != []
