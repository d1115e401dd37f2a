"""The clock that trust is measured on.

``CLOCK_BOOTTIME`` goes on counting while the machine is suspended, as the server's clock does; ``CLOCK_MONOTONIC``, the
best there is on macOS and others, stands still then, so a lock may be believed for too long after a suspend there.
Neither moves when somebody sets the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

Clock = Callable[[], float]

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def _clock() -> Clock:
    if _BOOTTIME is None:
        return time.monotonic
    try:
        time.clock_gettime(_BOOTTIME)
    except OSError:
        return time.monotonic
    return partial(time.clock_gettime, _BOOTTIME)


#: Seconds since some fixed moment.
boot_time: Clock = _clock()
