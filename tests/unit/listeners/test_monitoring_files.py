"""The Grafana dashboard and the Prometheus alerts in docs/monitoring: they name what is exported, and are sound.

``promtool`` (Debian's package prometheus) checks what a text comparison can't: the expressions, and when alerts fire.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.documented import ROOT

prometheus_client = pytest.importorskip("prometheus_client")

from celery_etcdlock.core.events import BeatTookOver, TickSent  # noqa: E402
from celery_etcdlock.listeners.prometheus import PrometheusListener  # noqa: E402
from tests.unit.listeners.events_of_a_lock import (  # noqa: E402
    ACQUIRED,
    CONFLICTED,
    DEDUPLICATED,
    LOST,
    OWNER,
    RELEASED,
)

FOLDER = ROOT / "docs/monitoring"
PAGE = ROOT / "docs/monitoring.md"
DASHBOARD = FOLDER / "grafana.json"
ALERTS = FOLDER / "alerts.yml"
GRAFANAS = {"$__rate_interval": "5m", "$__range": "3h", "$job": ".*", "$task": ".*"}


@pytest.fixture(scope="module")
def exported() -> tuple[set[str], set[str]]:
    """Names of all samples, and of their labels."""
    registry = prometheus_client.CollectorRegistry()
    listener = PrometheusListener(registry)
    beat = (TickSent("beat:a", OWNER, "nightly", 0.5), BeatTookOver("beat:a", OWNER, 1, 0))
    for event in (ACQUIRED, RELEASED, ACQUIRED, LOST, CONFLICTED, DEDUPLICATED, *beat):
        listener(event)
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {sample.name for sample in samples}, {label for sample in samples for label in sample.labels}


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


@pytest.mark.parametrize("path", [DASHBOARD, ALERTS, FOLDER / "alerts_test.yml", PAGE], ids=lambda path: path.name)
def test_every_metric_named_is_exported(path: Path, exported: tuple[set[str], set[str]]) -> None:
    named = set(re.findall(r"\bcelery_etcdlock_[a-z_]*[a-z]\b", path.read_text()))
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exported[0]}
    assert named
    assert named <= exported[0] | families


def test_the_page_explains_every_metric_and_alert(exported: tuple[set[str], set[str]]) -> None:
    families = {re.sub("_(bucket|sum|count|created)$", "", name) for name in exported[0]}
    families = {f"{name}_total" if f"{name}_total" in exported[0] else name for name in families}
    page = PAGE.read_text()
    assert [name for name in families if f"`{name}`" not in page] == []
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert len(alerts) == len(set(alerts)) > 4
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []


def test_only_labels_that_there_are(exported: tuple[set[str], set[str]]) -> None:
    texts = [*expressions(), ALERTS.read_text()]
    grouped = {
        one.strip() for text in texts for group in re.findall(r"by \(([^)]*)\)", text) for one in group.split(",")
    }
    assert grouped <= exported[1] | {"job"}
    legends = {target.get("legendFormat", "") for panel in panels() for target in panel.get("targets", [])}
    assert {one for legend in legends for one in re.findall(r"{{(\w+)}}", legend)} <= exported[1]


def test_the_dashboard_is_laid_out_without_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]:
            assert taken.setdefault(cell, panel["title"]) is panel["title"]
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        assert panel["type"] == "row" or panel["targets"]


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        missing("promtool (Debian's package prometheus)")
        raise AssertionError
    done = subprocess.run([binary, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_alerts_and_they_fire_when_they_should() -> None:
    promtool("check", "rules", ALERTS.name)
    promtool("test", "rules", "alerts_test.yml")


def test_promtool_takes_the_dashboards_expressions(tmp_path: Path) -> None:
    rules = []
    for number, expression in enumerate(expressions()):
        for variable, value in GRAFANAS.items():
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    # JSON is YAML, too.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)
