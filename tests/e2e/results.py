"""Waiting for results, where a subscription may come too late."""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import TimeoutError as ResultTimeout

ASK_AGAIN_SECONDS = 5.0


def outcome(result: Any, seconds: float) -> Any:
    """``result.get``, asked anew now and then.

    Celery's Redis results are pushed. One that is stored while its subscription is still on the way is never told of;
    only the beginning of a ``get`` looks.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return result.get(timeout=min(ASK_AGAIN_SECONDS, max(0.1, until - time.monotonic())))
        except ResultTimeout:
            if time.monotonic() >= until:
                raise
