"""Bars of a run's main figures, as an SVG that needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["CHARTS", "svg"]

WIDTH, LABEL, BAR, GAP, ROOM = 860, 250, 18, 8, 80
OURS, THEIRS = "#2f6f4f", "#9aa7b1"

#: Of each measurement: the chart's title, the columns that label a bar, the one that is its length.
CHARTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "lock_latency": ("Lock+unlock, one caller: p50 in ms (less is better)", ("client", "members"), "p50_ms"),
    "lock_throughput": ("Lock+unlock, 64 callers: pairs/s (more is better)", ("client", "members"), "rate"),
    "hand_off": ("Hand-off to the next waiter: p50 in ms (less is better)", ("client", "waiters"), "p50_ms"),
    "noop_tasks": ("No-op tasks/s (more is better)", ("task", "pool"), "rate"),
}


def svg(report: dict[str, Any]) -> str:
    """All charts of those measurements that the report has, one under the other."""
    parts: list[str] = []
    top = 10
    for name, (title, labels, value) in CHARTS.items():
        rows = [row for row in report["measurements"].get(name, {}).get("rows", ()) if row.get(value)]
        if rows:
            parts += _chart(title, rows, labels, value, top)
            top += 34 + len(rows) * (BAR + GAP) + 16
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    style = ' font-family="sans-serif" font-size="12" fill="#222">'
    return "\n".join([head + style, f'<rect width="{WIDTH}" height="{top}" fill="white"/>', *parts, "</svg>", ""])


def _chart(title: str, rows: Sequence[dict[str, Any]], labels: tuple[str, ...], value: str, top: int) -> list[str]:
    longest = max(row[value] for row in rows)
    out = [f'<text x="10" y="{top + 18}" font-size="14" font-weight="bold">{escape(title)}</text>']
    for number, row in enumerate(rows):
        y = top + 34 + number * (BAR + GAP)
        first, second = (str(row[label]) for label in labels)
        length = max(1.0, row[value] / longest * (WIDTH - LABEL - ROOM))
        colour = OURS if first.startswith("celery-etcdlock") else THEIRS
        figure = f"{row[value]:,.0f}" if row[value] >= 100 else f"{row[value]:.2f}"
        out += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(f"{first}, {second}")}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LABEL + length + 6:.0f}" y="{y + 13}">{figure}</text>',
        ]
    return out
