"""What a check of the installation found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial

# Per minor version: the first release that has what locks need, and what is wrong before it.
_FIRST_GOOD: dict[tuple[int, int], tuple[int, str]] = {
    (3, 4): (42, "3.4 is end-of-life, and before 3.4.42 it grants leases without a login"),
    (3, 5): (33, "before 3.5.33 it has known defects in leases, authentication or, before 3.5.6, data consistency"),
    (3, 6): (14, "before 3.6.14 it has known defects in leases and authentication"),
    (3, 7): (1, "3.7.0 was followed by fixes"),
}
# Not merely old: these lose or corrupt the data of locks.
_INCONSISTENT = ((3, 5, 0), (3, 5, 5))


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``subject`` in a word or two, ``text`` what was seen, ``remedy`` what to do (empty if nothing)."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


ok = partial(CheckResult, Level.OK)
warning = partial(CheckResult, Level.WARNING)
broken = partial(CheckResult, Level.BROKEN)


def version_check_result(endpoint: str, version: str) -> CheckResult:
    """What is known of an etcd version."""
    subject = f"version of {endpoint}"
    try:
        major, minor, patch = (int(part) for part in version.split("-")[0].split(".")[:3])
    except ValueError:
        return warning(subject, f"{version!r} is no version that is known here")
    advice = "upgrade to 3.5.33, 3.6.14, 3.7.1 or later"
    if (major, minor) < (3, 4):
        return broken(subject, f"{version}: celery-etcdlock needs 3.4 or later", advice)
    if _INCONSISTENT[0] <= (major, minor, patch) <= _INCONSISTENT[1]:
        text = f"{version}: members can come to disagree on data after a crash (mended in 3.5.6)"
        return warning(subject, text, f"{advice}; never run this version in production")
    first_good, why = _FIRST_GOOD.get((major, minor), (0, ""))
    if patch < first_good:
        return warning(subject, f"{version}: {why}", advice)
    return ok(subject, version)
