"""How fast this machine's clock runs, as far as the machine itself can tell.

Trust allows for clocks that differ by ``core.ownership.DRIFT``. What disciplines a clock (NTP) may slew it by 0.05 %; a
broken one, or a virtual machine's after a migration, by more. The raw hardware counter beside the disciplined clock
shows the slew.
"""

from __future__ import annotations

import time

from celery_etcdlock.core.check_results import CheckResult, broken, ok, warning
from celery_etcdlock.core.ownership import DRIFT

SAMPLE_SECONDS = 0.5


def check_clock() -> list[CheckResult]:
    """Takes half a second."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        check_results = [ok("clock", "CLOCK_BOOTTIME is there, so a suspend of this machine is counted")]
    else:
        text = "there is no CLOCK_BOOTTIME: after a suspend of this machine a lock may be believed for too long"
        check_results = [warning("clock", text, "don't suspend machines that run workers")]
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    if raw is None:
        return check_results
    began = time.clock_gettime(raw), time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    elapsed_raw, elapsed = time.clock_gettime(raw) - began[0], time.monotonic() - began[1]
    rate = abs(elapsed / elapsed_raw - 1)
    text = f"runs within {rate * 1e6:,.0f} ppm of its hardware; {DRIFT * 1e6:,.0f} ppm are allowed for"
    if rate > DRIFT / 2:
        check_results.append(broken("clock", text, "mend this machine's clock (chronyc tracking)"))
    else:
        check_results.append(ok("clock", text))
    return check_results
