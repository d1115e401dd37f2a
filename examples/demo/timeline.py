"""Draws who held what, when: a row for each key and worker, a bar for each body, with its fencing token.

    rebuild_index  alpha  12######            23######
                   beta             18######

A body that was killed ends in an X, and dots show how long its lock stayed taken. Where two bodies of a key ran at
once, a row of ``!`` under the key says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from examples.demo.evidence import by_key, end_of, overlaps
from examples.demo.journal import Span
from examples.demo.style import Style

#: Bars of each worker: background colour, and what fills them without colours, in Unicode and ASCII.
LOOKS = (("46", "\u2588", "#"), ("45", "\u2593", "="), ("43", "\u2592", "%"))
TOKEN = "1"
KILLED, LINGERS, OVERLAP = "1;37;41", "31", "1;31"
TICKS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
CELLS_PER_TICK = 8

#: A character and its colour.
Cell = tuple[str, str]


def draw(spans: Sequence[Span], workers: Sequence[str], style: Style) -> list[str]:
    """The lines of a timeline. Bodies still running reach to its end."""
    if not spans:
        return ["(nothing ran)"]
    start = min(span.start for span in spans)
    ends = [end for span in spans if math.isfinite(end := end_of(span))]
    seconds = max([*ends, max(span.start for span in spans)]) - start or 1.0
    keys = dict(sorted(by_key(spans).items()))
    key_width = max(map(len, keys))
    worker_width = max(map(len, workers))
    left = key_width + worker_width + 6
    width = style.width - left
    scale = _Scale(start, seconds, width)
    lines = []
    for key, of_key in keys.items():
        for number, worker in enumerate(workers):
            label = f"  {key if number == 0 else '':<{key_width}}  {worker:<{worker_width}}  "
            mine = [span for span in of_key if span.worker == worker]
            lines.append(label + _row(mine, scale, LOOKS[number % len(LOOKS)], style))
        collisions = overlaps(of_key)
        if collisions:
            cells: list[Cell] = [(" ", "")] * width
            for overlap in collisions:
                for at in range(scale.cell(overlap.start), scale.last_cell(overlap.end) + 1):
                    cells[at] = ("!", OVERLAP)
            lines.append(f"{'TWO AT ONCE':>{left - 2}}  " + _join(cells, style))
    lines.append(" " * left + style.dim(_axis(scale, style)))
    if any(span.freed for span in spans):
        lines.append(" " * left + style.dim("X killed; the dots: its lock, until etcd ended the lease"))
    return [line.rstrip() for line in lines]


class _Scale:
    """Time to cells."""

    def __init__(self, start: float, seconds: float, width: int) -> None:
        self.start, self.seconds, self.width = start, seconds, width

    def cell(self, at: float) -> int:
        if not math.isfinite(at):
            return self.width - 1
        return max(0, min(int((at - self.start) / self.seconds * self.width), self.width - 1))

    def last_cell(self, end: float) -> int:
        """The last cell of something that ends there: the one before the cell in which the next may start."""
        if not math.isfinite(end):
            return self.width - 1
        return max(0, min(math.ceil((end - self.start) / self.seconds * self.width) - 1, self.width - 1))


def _row(spans: Sequence[Span], scale: _Scale, look: tuple[str, str, str], style: Style) -> str:
    colour, fancy, plain = look
    fill = " " if style.colour else style.pick(fancy, plain)
    cells: list[Cell] = [(" ", "")] * scale.width
    for span in spans:
        first = scale.cell(span.start)
        last = max(first, scale.last_cell(end_of(span)))
        room = last - first + 1
        token = str(span.token) if span.token and len(str(span.token)) < room else ""
        cells[first : last + 1] = [(fill, colour)] * room
        cells[first : first + len(token)] = [(digit, TOKEN) for digit in token]
        if style.colour and not token:
            cells[first] = (style.pick("\u258f", "|"), colour)
        if span.killed:
            cells[last] = ("X", KILLED)
            until = scale.last_cell(span.freed) if span.freed is not None else last
            for at in range(last + 1, until + 1):
                cells[at] = (style.pick("\u00b7", "."), LINGERS)
    return _join(cells, style)


def _join(cells: Sequence[Cell], style: Style) -> str:
    """One escape sequence for each run of a colour."""
    text, run, colour = "", "", ""
    for character, of_cell in [*cells, ("", "end")]:
        if of_cell != colour:
            text += style.paint(run, colour) if colour else run
            run, colour = "", of_cell
        run += character
    return text


def _axis(scale: _Scale, style: Style) -> str:
    """``|0      |0.5    |1.0 s``."""
    fits = [step for step in TICKS_SECONDS if step / scale.seconds * scale.width >= CELLS_PER_TICK]
    step = fits[0] if fits else TICKS_SECONDS[-1]
    text = ""
    for number in range(int(scale.seconds / step) + 1):
        at = number * step
        label = style.pick("\u2575", "|") + f"{at:g} s"
        position = scale.cell(scale.start + at)
        if position + len(label) <= scale.width:
            text = text.ljust(position) + label
    return text
