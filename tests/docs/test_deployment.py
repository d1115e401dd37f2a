"""Manifests and units of the pages: against their schemas, by systemd's own check, and etcd with their flags."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.docs.pages import PAGES, blocks, text_of
from tests.etcd_server import etcd_binary, free_ports
from tests.waiting import wait_for

needs_newer_python = pytest.mark.skipif(sys.version_info < (3, 11), reason="the tools need Python 3.11")


def manifests() -> list[Any]:
    import yaml

    found = [(block.where, block.text) for page in PAGES for block in blocks(page) if block.language == "yaml"]
    return [
        pytest.param(document, id=f"{where} {document.get('kind')}")
        for where, text in found
        for document in yaml.safe_load_all(text)
        if {"kind", "apiVersion"} & document.keys()
    ]


def units() -> dict[str, str]:
    """The unit's name, from the sentence above it, to its text."""
    found: dict[str, str] = {}
    lines = text_of("docs/systemd.md").split("\n")
    for block in blocks("docs/systemd.md"):
        if block.language == "ini":
            above = " ".join(lines[max(0, block.line - 5) : block.line - 1])
            name = [word for word in above.split("`") if word.endswith(".service")][-1]
            found[name.rsplit("/", 1)[1]] = block.text
    return found


@needs_newer_python
@pytest.mark.parametrize("version", ["1.28", "1.31", "1.33", "1.37"])
def test_manifests_fit_the_schema(version: str) -> None:
    import kubernetes_validate

    documents = [parameter.values[0] for parameter in manifests()]
    assert {document["kind"] for document in documents} >= {"StatefulSet", "Deployment", "Service"}
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


@needs_newer_python
def test_labels_fit_together() -> None:
    for document in (parameter.values[0] for parameter in manifests()):
        if document["kind"] in {"StatefulSet", "Deployment"}:
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_units_pass_systemds_check(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze (Debian's systemd)")
    assert analyze is not None
    files = []
    for name, text in units().items():
        # What must exist on the machine that checks: the program and the user.
        text = "\n".join(
            f"ExecStart={shutil.which('true')} {line.split(' ', 1)[1]}" if line.startswith("ExecStart=") else line
            for line in text.split("\n")
            if not line.startswith("User=")
        )
        files.append(tmp_path / name.replace("@.", "@one."))
        files[-1].write_text(text)
    assert len(files) == 3
    done = subprocess.run(
        [analyze, "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in done.stderr.splitlines() if any(path.name in line for path in files)]
    assert done.returncode == 0, done.stderr
    assert not ours, ours


def _flags_of_unit() -> list[str]:
    [line] = [
        line for line in units()["etcd.service"].replace("\\\n", " ").split("\n") if line.startswith("ExecStart=")
    ]
    return shlex.split(line)[1:]


def _flags_of_manifest() -> list[str]:
    [stateful] = [found.values[0] for found in manifests() if found.values[0]["kind"] == "StatefulSet"]
    [container] = stateful["spec"]["template"]["spec"]["containers"]
    return [str(argument).replace("$(POD_NAME)", "etcd-0") for argument in container["args"]]


@needs_newer_python
@pytest.mark.parametrize("flags", [_flags_of_unit, _flags_of_manifest], ids=["systemd", "kubernetes"])
def test_etcd_starts_with_these_flags(flags: Any, tmp_path: Path) -> None:
    """As a cluster of one, on loopback: the flags are known and agree with each other."""
    try:
        binary = etcd_binary()
    except FileNotFoundError as error:
        missing(str(error))
    client, peer, metrics = (f"http://127.0.0.1:{port}" for port in free_ports(3))
    command = [str(binary)]
    given = dict(flag.split("=", 1) for flag in flags())
    given |= {"--data-dir": str(tmp_path / "data"), "--initial-cluster": f"{given['--name']}={peer}"}
    for flag, url in {"listen-client": client, "advertise-client": client, "listen-peer": peer}.items():
        given[f"--{flag}-urls"] = url
    given["--initial-advertise-peer-urls"] = peer
    if "--listen-metrics-urls" in given:
        given["--listen-metrics-urls"] = metrics
    command += [f"{flag}={value}" for flag, value in given.items()]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(
                lambda: process.poll() is not None or "ready to serve client requests" in log.read_text(),
                "etcd serves clients",
                60,
            )
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
