"""A run may take seconds on a machine that is busy with other tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Celery warns of what a soft time limit interrupts in its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
