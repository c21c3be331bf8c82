"""The figure of a cast's values on the grid of its format: a bar a binade, in the colours of what becomes of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from altgrad_core.analysis.figures import EMPTY, GRID, Style, drawing, new_axes_of, styles, to_svg
from altgrad_core.training.histograms import CastHistogram, FormatRange

Fate = Literal["normal", "subnormal", "lost"]
_WIDTH, _PANEL, _REST = 5.2, 1.0, 0.55  # inches
_MARGIN = 10  # binades that are drawn beyond the range of the format, and of its values
_MOST_LETTERS = 35

_BLUE, _RED, _, _PURPLE, _ = styles([False] * 5)
LOOKS: dict[Fate, Style] = {"normal": _BLUE, "subnormal": _PURPLE, "lost": _RED}
LEGEND = [
    ("normal", LOOKS["normal"]),
    ("subnormal: fewer bits", LOOKS["subnormal"]),
    ("hatched: zero, or clamped", LOOKS["lost"]),
]


@attrs.frozen
class Panel:
    """One row of the figure."""

    name: str
    """What was cast, to what."""
    said: str
    """What became of it, in numbers."""
    histogram: CastHistogram


def fate(exponent: int, range: FormatRange) -> Fate:
    """Return what becomes of most values from 2^exponent to below 2^(exponent + 1), rounded to nearest."""
    # Exponents, as a binade may lie beyond what a float can hold.
    if exponent + 1 <= math.log2(range.min_positive) - 1 or exponent >= math.log2(range.max_finite):
        return "lost"
    return "subnormal" if range.min_normal is not None and exponent < math.log2(range.min_normal) else "normal"


def grid_figure(panels: Sequence[Panel], *, salt: str) -> str:
    """Draw the panels below each other over log2 of abs(x / scale), on one axis; the shaded part is the format's range.

    What lies further out than the axis goes is in its first and its last bar.
    """
    low, high = _limits([panel.histogram for panel in panels])
    with drawing(salt):
        figure, rows = new_axes_of(_WIDTH, _PANEL * len(panels) + _REST, len(panels))
        for axes, panel in zip(rows, panels, strict=True):
            _draw(axes, panel, low, high)
        rows[-1].set_xlabel("log2 of |x / scale|")
        figure.supylabel("% of the elements", fontsize=9.5)
        return to_svg(figure, list(LOOKS.values()), salt)


def _draw(axes: Any, panel: Panel, low: int, high: int) -> None:
    from matplotlib.ticker import MaxNLocator

    its = panel.histogram
    smallest, largest = math.log2(its.range.min_positive) - 1, math.log2(its.range.max_finite)
    axes.axvspan(max(low, smallest), min(high, largest), facecolor=EMPTY, linewidth=0, zorder=0)
    for edge in (smallest, largest, math.log2(its.range.min_normal) if its.range.min_normal else smallest):
        if low <= edge <= high:
            axes.axvline(edge, color=GRID, linewidth=1.0, zorder=1)
    shares: dict[int, float] = {}
    for exponent, count in zip(its.edges[:-1], its.counts, strict=True):
        place = min(max(exponent, low), high - 1)
        shares[place] = shares.get(place, 0.0) + 100 * count / its.elements
    for kind, look in LOOKS.items():
        bars = {exponent: share for exponent, share in shares.items() if share and fate(exponent, its.range) == kind}
        axes.bar(
            list(bars), list(bars.values()), width=0.9, align="edge", color=look.placeholder, zorder=2,
            hatch="////" if kind == "lost" else None, edgecolor=EMPTY, linewidth=0,
        )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.1 * max(shares.values(), default=0.0) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.grid(visible=False, axis="x")
    name = panel.name if len(panel.name) <= _MOST_LETTERS else f"…{panel.name[1 - _MOST_LETTERS :]}"
    axes.set_title(name, loc="left", fontsize=8.5)
    axes.set_title(panel.said, loc="right", fontsize=8)


def _limits(found: Sequence[CastHistogram]) -> tuple[int, int]:
    """Return the axis: all values and the whole range of each format, but neither far beyond the other."""
    lows, highs = [], []
    for its in found:
        smallest, largest = (
            math.floor(math.log2(its.range.min_positive)) - 1,
            math.ceil(math.log2(its.range.max_finite)),
        )
        first, last = (its.edges[0], its.edges[-1]) if its.counts else (smallest, largest)
        lows.append(max(min(first, smallest), first - _MARGIN if first > smallest else smallest - _MARGIN))
        highs.append(min(max(last, largest), last + _MARGIN if last < largest else largest + _MARGIN))
    return min(lows) - 1, max(highs) + 1
