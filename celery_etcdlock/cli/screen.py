"""What ``top`` draws, on a terminal of any size: 80 x 24 is the one that it must fit.

FOR, TTL and WAITING show how a lock is doing, so they always keep their full width; so do RETRY and JOIN, which are
drawn where anybody waits so. The lock's name gets the rest, cut in its middle: the task at its start and the digest at
its end tell locks apart. OWNER and TASK need a wide terminal. The last line counts what doesn't fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from celery_etcdlock.cli.table import WAITS, table_of, waits_in_words
from celery_etcdlock.core.lock_table import LockEntry, contended_first, number_held
from celery_etcdlock.core.waiting_counts import NONE, WaitingCount

#: The two lines above the table, its headings, and the last line.
OTHER_LINES = 4
GAP = 2
#: Columns of figures: as wide as what is in them, and to the right.
FIGURES = ("FOR", "TTL", *WAITS)
#: From how many columns of the terminal on a column is drawn, and how wide it may be; WHERE and ABOUT a share of it.
FROM_WIDTH = {"WHERE": 60, "ABOUT": 80, "TASK": 120, "OWNER": 160}
MOST_WIDTH = {"TASK": 32, "OWNER": 36}
#: Their ends tell them apart: a digest, a process id.
CUT_IN_THE_MIDDLE = ("LOCK", "WHERE")
#: Characters of a name's end that stay when its middle is cut.
TAIL = 6


def rows_that_fit(height: int) -> int:
    return max(1, height - OTHER_LINES)


def screen(
    locks: Sequence[LockEntry],
    ttls: Mapping[int, float],
    width: int,
    height: int,
    *,
    where: str,
    others: WaitingCount = NONE,
    now: float | None = None,
) -> Group:
    """``where`` says what is looked at. ``others`` wait for locks that aren't among ``locks``. ``now`` is Unix time."""
    held = number_held(locks)
    head = f"{held} {'lock' if held == 1 else 'locks'} held, {waits_in_words(locks, others)} · ctrl-c ends"
    total = sum(len(lock.owners) or 1 for lock in locks)
    headings, rows = table_of(contended_first(locks), ttls, now=now, most=rows_that_fit(height))
    names = [name for name in headings if width >= FROM_WIDTH.get(name, 0)]
    cells = [[row[headings.index(name)] for name in names] for row in rows]
    widths = _widths(names, cells, width)
    lines = [Text(_cut_end(head, width)), Text(_cut_end(where, width), style="dim")]
    lines.append(Text(_line(names, names, widths), style="bold"))
    for row in cells:
        waited_for = any(cell != "-" for name, cell in zip(names, row, strict=True) if name in WAITS)
        lines.append(Text(_line(names, row, widths), style="yellow" if waited_for else ""))
    if total > len(rows):
        lines.append(Text(f"and {total - len(rows)} more", style="dim"))
    for line in lines:
        line.no_wrap = True
    return Group(*lines)


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    most = MOST_WIDTH | {"WHERE": max(16, width // 5), "ABOUT": max(18, width // 5)}
    widths = [min(needs, most.get(name, needs)) for name, needs in zip(names, widths, strict=True)]
    others = sum(widths[1:]) + GAP * (len(widths) - 1)
    widths[0] = max(1, min(widths[0], width - others))
    return widths


def _line(names: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for name, cell, width in zip(names, row, widths, strict=True):
        if name in FIGURES:
            cells.append(cell.rjust(width))
        else:
            cut = _cut_middle if name in CUT_IN_THE_MIDDLE else _cut_end
            cells.append(set_cell_size(cut(cell, width), width))
    return (" " * GAP).join(cells).rstrip()


def _cut_end(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _cut_middle(text: str, width: int) -> str:
    if cell_len(text) <= width or width < 2 * TAIL:
        return _cut_end(text, width)
    tail = text[-TAIL:]
    return set_cell_size(text, width - cell_len(tail) - 1) + "…" + tail
