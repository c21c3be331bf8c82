"""Lines of styled text, built left to right to a fixed width, and how a terminal gets them.

Everything is drawn with Unicode; a terminal that cannot show it gets ``ASCII``, a translation of one character for
one, so that nothing moves. Styles are few and named for what they mean; each one that tells something bad or good
stands beside a word or a mark that says the same without colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import attrs
from rich.cells import cell_len, chop_cells
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style

PLAIN = Style.null()
DIM = Style(dim=True)
STRONG = Style(bold=True)
HEAD = Style(color="cyan")
BAR = Style(color="cyan")
GOOD = Style(color="green")
WARN = Style(color="yellow")
BAD = Style(color="red", bold=True)
SEVERITIES = (PLAIN, WARN, BAD)
LEVELS = {"info": PLAIN, "warning": WARN, "error": BAD}

_WORDS = re.compile(r"(\s*)(\d[\d.,]* (?:ms|s|[KMGT]?i?B|%|°C)(?!\w)\S*|\S+)")
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = str.maketrans({
    "━": "=", "╸": "-", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "·": "-", "…": "~", "°": " ", "Δ": "d",
    "×": "x", "✓": "*", **dict(zip(_BLOCKS, "_.-=+*#@", strict=True)),
})  # fmt: skip
_CONTROL = str.maketrans({
    **dict.fromkeys([*range(32), *range(127, 160)], "?"), 9: " ", 10: " ", 13: " ",
    # Half of a surrogate pair, as in the name of a file that is not UTF-8, cannot be written.
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
})  # fmt: skip


@attrs.frozen(kw_only=True)
class Look:
    """What the other side can show."""

    unicode: bool = True
    """Whether it knows blocks and lines; otherwise ASCII."""
    color: ColorSystem | None = None
    """Which colours it knows, None for no control codes at all."""

    def text(self, text: str) -> str:
        """Return ``text`` in the characters that can be shown."""
        if self.unicode or text.isascii():
            return text
        text = text.translate(_ASCII)
        return text if text.isascii() else "".join(c if c.isascii() else "?" * cell_len(c) for c in text)


class Line:
    """One line under construction. Texts may come from files: control characters in them are taken out."""

    __slots__ = ("parts", "width")

    def __init__(self, text: str = "", style: Style = PLAIN) -> None:
        self.parts: list[Segment] = []
        self.width = 0
        self.add(text, style)

    def add(self, text: str, style: Style = PLAIN) -> Line:
        """Append text; returns the line."""
        if text:
            text = text.translate(_CONTROL)
            self.parts.append(Segment(text, style))
            self.width += len(text) if text.isascii() else cell_len(text)
        return self

    def field(self, text: str, width: int, style: Style = PLAIN, *, right: bool = False) -> Line:
        """Append text in a field of exactly ``width`` cells, cut with an ellipsis when it is longer."""
        text = text.translate(_CONTROL)
        length = cell_len(text)
        if length > width:
            text = cut(text, width)
            length = cell_len(text)
        space = " " * (width - length)
        self.parts.append(Segment(space + text if right else text + space, style))
        self.width += width
        return self

    def to(self, column: int) -> Line:
        """Append spaces up to ``column``."""
        return self.add(" " * (column - self.width))

    def extend(self, other: Line) -> Line:
        """Append another line's parts."""
        self.parts += other.parts
        self.width += other.width
        return self

    def within(self, width: int) -> Line:
        """Return the line cut to ``width`` cells."""
        if self.width <= width:
            return self
        short = Line()
        for text, style, _ in self.parts:
            room = width - short.width
            if cell_len(text) > room:
                return short.field(text, room, style or PLAIN)
            short.add(text, style or PLAIN)
        return short

    @property
    def plain(self) -> str:
        """The text alone."""
        return "".join(part.text for part in self.parts)

    def drawn(self, look: Look) -> str:
        """Return the text with the control codes of its colours."""
        if look.color is None:
            return look.text(self.plain)
        return "".join(
            style.render(look.text(text), color_system=look.color) if style else look.text(text)
            for text, style, _ in self.parts
        )


def cut(text: str, width: int) -> str:
    """Return text in at most ``width`` cells, with an ellipsis where something is missing."""
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    return chop_cells(text, width - 1)[0] + "…"


def wrap(text: str, first: int, rest: int) -> list[str]:
    """Return text in lines of at most ``first``, then ``rest`` cells, broken at spaces; at least one line.

    A number stays with its unit. A longer word, which may be a path that somebody wants to copy, keeps a line of its own.
    """
    lines, room, width = [""], first, 0
    for space, word in _WORDS.findall(text):
        length = cell_len(word)
        if width and width + len(space) + length > room:
            lines, room, width = [*lines, word], rest, length
        else:
            lines[-1] += space + word
            width += len(space) + length
    return lines


def bar(fraction: float, width: int) -> Line:
    """Return a progress bar with half-cell resolution."""
    halves = round(2 * width * min(1.0, max(0.0, fraction if math.isfinite(fraction) else 0.0)))
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Line(done, BAR).add("─" * (width - len(done)), DIM)


def sparkline(values: Sequence[float]) -> str:
    """Return one block a value, lowest to highest; ``×`` for what is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "×" * len(values)
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] if math.isfinite(v) else "×" for v in values)


def rule(title: str, mark: str, width: int, style: Style = HEAD) -> Line:
    """Return a horizontal line with a title at its left and a mark at its right, for which the title gives way."""
    tail = f" {mark} ─" if mark else ""
    room = width - cell_len(tail) - 4
    line = Line()
    if title and room > 0:
        line.add("─ ", style).add(cut(title, room), STRONG).add(" ", style)
    return line.add("─" * (width - line.width - cell_len(tail)), style).add(tail, BAD).within(width)


def box(title: str, rows: Sequence[Line], width: int, style: Style = HEAD) -> list[Line]:
    """Return rows in a frame as wide as they need, at most ``width``."""
    inner = min(width - 4, max([row.width for row in rows] + [cell_len(title) + 2]))
    title = cut(title, inner - 2)
    top = Line("╭─ ", style).add(title, STRONG).add(" " + "─" * (inner - cell_len(title) - 1) + "╮", style)
    bottom = Line("╰" + "─" * (inner + 2) + "╯", style)
    body = [Line("│ ", style).extend(row.within(inner)).to(inner + 2).add(" │", style) for row in rows]
    return [top, *body, bottom]
