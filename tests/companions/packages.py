"""The packages that Celery is used with: what isn't installed is skipped, unless it was to be (``COMPANIONS``)."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def package(name: str) -> Any:
    """The module, or skip the file; in a session that installed it, an import that fails is a failure."""
    if name.split(".")[0] in os.environ.get("COMPANIONS", "").split(","):
        return importlib.import_module(name)
    return pytest.importorskip(name)
