"""Text tables that leave out the columns that do not fit, and charts of one line or a few, for any terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from rich.console import Console

_GAP = "  "
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SHADES = (" ", "·", "│", "┃", "█")


@attrs.frozen
class Column:
    """A column of a table."""

    header: str
    """Heading; a line break folds it."""
    cell: Callable[[Any], str]
    """A row's text."""
    left: bool = False
    """Whether the cells are words, aligned to the left."""
    rank: int = 0
    """Columns of the highest rank go first where the width does not suffice; 0 stays."""
    least: int = 0
    """The last column may be cut to this many characters, if not 0."""


def fitting(columns: Sequence[Column], rows: Sequence[Any], width: int) -> list[Column]:
    """Return the columns that fit into ``width`` characters: those of the highest rank are left out first."""
    kept = list(columns)
    while any(column.rank for column in kept):
        widths = _widths(kept, rows)
        if kept[-1].least:
            widths[-1] = min(widths[-1], kept[-1].least)
        if sum(widths) + len(_GAP) * (len(kept) - 1) <= width:
            break
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def lines(columns: Sequence[Column], groups: Iterable[tuple[str, Sequence[Any]]], width: int) -> list[tuple[str, str]]:
    """Return (text, style) for each line: the header, then each group's title, if it has one, and its rows.

    All groups share the widths of the columns. Titles are folded at ``width``, and so is a last column that may be cut.
    """
    groups = list(groups)
    widths = _widths(columns, [row for _, rows in groups for row in rows])
    if columns[-1].least:
        widths[-1] = min(widths[-1], width - sum(widths[:-1]) - len(_GAP) * (len(columns) - 1))
    headers = [column.header.split("\n") for column in columns]
    tall = max(map(len, headers))
    made = []
    for i in range(tall):
        made.append((_line(columns, widths, [([""] * (tall - len(header)) + header)[i] for header in headers]), "bold"))
    for title, rows in groups:
        if title:
            made.append(("", ""))
            made += [(part, "italic") for part in textwrap.wrap(title, width)]
        made += [(_line(columns, widths, [column.cell(row) for column in columns]), "") for row in rows]
    return made


def _widths(columns: Sequence[Column], rows: Sequence[Any]) -> list[int]:
    return [max([*map(len, column.header.split("\n")), *(len(column.cell(row)) for row in rows)]) for column in columns]


def _line(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = [
        (cell.ljust(width) if column.left else cell.rjust(width))
        if len(cell) <= width
        else f"{cell[: width - 3].rstrip()}..."
        for column, width, cell in zip(columns, widths, cells, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def show(console: Console, text_lines: Iterable[tuple[str, str]]) -> None:
    """Print styled lines as they are: no wrapping, no markup, and no styles where colours are unwanted."""
    from rich.text import Text

    for text, style in text_lines:
        console.print(Text(text, style="" if console.no_color else style), soft_wrap=True)


def folded(sentences: Iterable[str], width: int) -> list[tuple[str, str]]:
    """Return plain lines of at most ``width`` characters."""
    return [(part, "") for sentence in sentences for part in textwrap.wrap(sentence, width)]


def bars(heights: Sequence[float], rows: int, *, ascii_only: bool) -> list[str]:
    """Return a chart of vertical bars, top line first; ``heights`` are fractions of the whole, 0 to 1.

    A bar above zero shows, however low it is.
    """
    steps = 1 if ascii_only else 8
    made = []
    for row in range(rows - 1, -1, -1):
        line = ""
        for height in heights:
            units = max(round(height * rows * steps), 1 if height > 0 else 0)
            part = min(max(units - row * steps, 0), steps)
            line += (" #"[part]) if ascii_only else _EIGHTHS[part]
        made.append(line)
    return made


def number_line(values: Sequence[float], low: float, high: float, width: int, *, ascii_only: bool) -> str:
    """Return a line of ``width`` characters from ``low`` to ``high``, darker where more values fall into a character."""
    counts = [0] * width
    for value in values:
        counts[min(int((value - low) / (high - low) * width), width - 1)] += 1
    shades = (" ", ".", "|", "H", "#") if ascii_only else _SHADES
    return "".join(shades[min(math.ceil(math.log2(count + 1)), 4) if count else 0] for count in counts)
