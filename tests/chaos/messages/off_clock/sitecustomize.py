"""For processes under libfaketime: it makes Python's ``time.sleep`` fail when only the wall clock is to be faked."""

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
