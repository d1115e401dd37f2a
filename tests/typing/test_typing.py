"""``api.py`` in the eyes of mypy and pyright. Every ignore in it must be needed, so a lost signature fails here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = Path(__file__).with_name("api.py")


def test_mypy() -> None:
    # Not the configuration's own package list: just this file, as a user's would be checked.
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--follow-imports=silent"]
    command += ["--config-file", os.devnull, str(API)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright(tmp_path: Path) -> None:
    config = {
        "include": [str(API)],
        "extraPaths": [str(ROOT)],
        "reportUnnecessaryTypeIgnoreComment": "error",
        "enableTypeIgnoreComments": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    if "npm" in done.stderr + done.stdout and done.returncode not in (0, 1):
        pytest.fail(f"pyright couldn't be set up:\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
