"""What a measurement yields: a table, goals, notes, and the rounds behind them for the JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Goal", "Result", "formatted", "verdict"]

Cell = str | float | None


@dataclass(frozen=True)
class Goal:
    """A ratio to reach: ``at_least`` or ``at_most``; ``value`` is ``None`` when it couldn't be measured."""

    text: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def line(self) -> str:
        value = "" if self.value is None else f" ({self.value:.2f})"
        return f"goal {verdict(self.met)}{value}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        limits = {"at_least": self.at_least, "at_most": self.at_most}
        return {"text": self.text, "value": self.value, "met": self.met} | {
            k: v for k, v in limits.items() if v is not None
        }


@dataclass
class Result:
    """``columns`` maps a row's keys to headings. A row with ``not_measured`` says why instead of figures."""

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Cell]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounds: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "columns": self.columns,
            "rows": self.rows,
            "goals": [goal.as_json() for goal in self.goals],
            "notes": self.notes,
            "rounds": self.rounds,
        }

    def text(self) -> str:
        """As printed: a table whose cells line up, then goals and notes."""
        lines = [list(self.columns.values())]
        lines += [[formatted(row.get(key)) for key in self.columns] for row in self.rows if "not_measured" not in row]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        first = next(iter(self.columns))
        absent = [row for row in self.rows if "not_measured" in row]
        widths[0] = max([widths[0], *(len(str(row[first])) for row in absent)])
        out = [self.title, "-" * len(self.title)]
        for line in lines:
            cells = [line[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            out.append("  ".join(cells).rstrip())
        out += [f"{str(row[first]).ljust(widths[0])}  not measured: {row['not_measured']}" for row in absent]
        out += [goal.line() for goal in self.goals]
        out += [f"note: {note}" for note in self.notes]
        return "\n".join(out)


def verdict(met: bool | None) -> str:
    """Of a goal, in words."""
    return {True: "met", False: "NOT MET", None: "not measured"}[met]


def formatted(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
