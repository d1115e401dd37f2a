"""What is known of etcd versions."""

from __future__ import annotations

import pytest

from celery_etcdlock.core.check_results import Level, version_check_result


@pytest.mark.parametrize(
    ("version", "level", "part"),
    [
        ("3.3.27", Level.BROKEN, "needs 3.4"),
        ("3.4.23", Level.WARNING, "end-of-life"),
        ("3.5.1", Level.WARNING, "disagree on data"),
        ("3.5.21", Level.WARNING, "before 3.5.33"),
        ("3.5.33", Level.OK, "3.5.33"),
        ("3.6.9", Level.WARNING, "before 3.6.14"),
        ("3.6.14", Level.OK, "3.6.14"),
        ("3.7.0", Level.WARNING, "3.7.0"),
        ("3.8.0-rc.1", Level.OK, "3.8.0"),
        ("weird", Level.WARNING, "no version that is known"),
    ],
)
def test_versions(version: str, level: Level, part: str) -> None:
    finding = version_check_result("host:2379", version)
    assert finding.level is level
    assert part in finding.text
    assert (finding.remedy == "") == (level is Level.OK or version == "weird")
