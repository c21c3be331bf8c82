"""Figures as SVG text that takes its colours from the page, so that they follow light, dark and print.

matplotlib knows fixed colours only: figures are drawn in placeholder colours, which are replaced in the SVG by
``currentColor`` and CSS variables. ``pyplot`` is not used: it keeps global state and may open a window system.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from altgrad_core.analysis.series import Layers, Series
from altgrad_core.recipes.recipe import OPERANDS

# Okabe and Ito's colours, which colour-blind readers can tell apart: black for the baseline, then the page's --series-1
# to --series-5 (blue, vermillion, green, purple, orange). Sky blue and yellow are too faint on paper.
PALETTE = 5
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
TEXT, GRID, EMPTY = "#010203", "#010204", "#010205"
"""What stands for the page's colours of text, of grid and axes, and of a cell without a value."""
_FONT = 9.5
_WIDTH, _HEIGHT = 5.2, 2.9  # inches of 72 CSS pixels: text stays readable on a phone
_LEAST_BAND = 8  # rows
_ROW, _HIGHEST = 0.13, 9.0  # inches: a row that has room for its name, and the highest heatmap
_MARKED = 40  # a line of at most this many points shows them
_REST_POINTS = 40  # of a line that is one of many


@attrs.frozen
class Style:
    """How a run is drawn in every figure."""

    color: str
    """CSS: ``currentColor`` or a variable."""
    placeholder: str
    """The colour that stands for it while matplotlib draws."""
    dashes: Any
    """matplotlib's line style."""
    dash_array: str
    """The same for SVG, in units of the legend."""
    width: float
    """Line width in points."""


REST = Style("var(--rest)", "#0a0c00", "solid", "", 0.8)
"""How runs are drawn that are too many for a look of their own each."""


def styles(baselines: Sequence[bool]) -> list[Style]:
    """Return one style a run, different for up to 20 runs beside the baseline: five colours, then dashes."""
    made = []
    others = 0
    for baseline in baselines:
        if baseline:
            made.append(Style("currentColor", TEXT, "solid", "", 2.0))
            continue
        index, dash = others % PALETTE, _DASHES[others // PALETTE % len(_DASHES)]
        array = "" if dash == "solid" else " ".join(f"{1.6 * part:g}" for part in dash[1])
        made.append(Style(f"var(--series-{index + 1})", f"#0a0b{index + 1:02x}", dash, array, 1.6))
        others += 1
    return made


def lines(
    series: Sequence[Series],
    looks: Sequence[Style],
    *,
    ylabel: str,
    xlabel: str = "step",
    faint: Sequence[Series] = (),
    dots: Sequence[tuple[Series, Style]] = (),
    zero: bool = False,
    from_zero: bool = False,
    robust: bool = False,
    salt: str,
) -> str:
    """Draw lines over steps. ``faint`` lies below in the same styles; ``dots`` are drawn as points alone.

    ``zero`` draws a line at 0, ``from_zero`` starts the axis there. ``robust`` lets the first tenth of the points, one
    at least, run out of the axis' top, so that a loss that falls from 5 to 2 shows the end and not the start; of more than
    20 lines one in 20 may run out of it, too. Steps with a value that is not finite are crosses at the bottom.
    """
    with drawing(salt):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        for line, look in zip(faint, looks, strict=False):
            if look is not REST:
                shown = line.finite().thin()
                axes.plot(shown.steps, shown.values, color=look.placeholder, alpha=0.22, linewidth=0.8)
        for line, look in zip(series, looks, strict=True):
            rest = look is REST
            shown = line.finite().thin(_REST_POINTS) if rest else line.finite().thin()
            marker = "o" if len(shown.steps) <= _MARKED and not rest else None
            axes.plot(
                shown.steps, shown.values, color=look.placeholder, linestyle=look.dashes, linewidth=look.width,
                marker=marker, markersize=2.6 if len(shown.steps) > 1 else 6, markeredgewidth=0, zorder=1.5 if rest else 2,
            )  # fmt: skip
        for line, look in dots:
            shown = line.finite()
            axes.plot(
                shown.steps, shown.values, color=look.placeholder, linestyle="none", marker="o",
                markersize=1.5 if look is REST else 4, zorder=1.5 if look is REST else 2,
            )  # fmt: skip
        if zero:
            axes.axhline(0, color=TEXT, linewidth=0.8)
        drawn = [value for line in (*series, *faint, *(line for line, _ in dots)) for value in line.finite().values]
        if from_zero:
            top = 1.06 * max(drawn, default=0.0) or 1.0
            axes.set_ylim(-0.02 * top, top)  # a line at 0 is a line, and no edge
        elif robust:
            _limit_to_end(axes, faint or series)
        for line, look in zip(faint or series, looks, strict=False):
            lost = [step for step, value in zip(line.steps, line.values, strict=True) if not math.isfinite(value)]
            at = [0.03] * len(lost)
            axes.plot(
                lost, at, color=look.placeholder, transform=axes.get_xaxis_transform(), linestyle="none", marker="x",
                markersize=4,
            )  # fmt: skip
        _steps_axis(
            axes, [step for line in (*series, *(line for line, _ in dots)) for step in line.steps], xlabel == "step"
        )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return to_svg(figure, looks, salt)


def heatmap(layers: Layers, *, label: str, low: float, high: float, logarithmic: bool, salt: str) -> str:
    """Draw layers by steps on the scale ``low`` to ``high``; blank cells are NaN, and 0 on a logarithmic scale.

    The cells are one embedded image of a pixel each: small, however many layers there are.
    """
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

    values = np.array(layers.values, dtype=float)
    if logarithmic:
        values[values <= 0] = math.nan
    names, bands = _bands(layers.rows)
    rows = len(names)
    height = min(_HIGHEST, max(1.2, _ROW * rows))
    with drawing(salt):
        figure, axes = new_axes(_WIDTH, height + 1.0)
        norm = (LogNorm if logarithmic else Normalize)(low, high)
        image = axes.imshow(
            np.ma.masked_invalid(values), aspect="auto", interpolation="none", cmap="cividis", norm=norm
        )
        axes.grid(visible=False)
        axes.set_facecolor(EMPTY)
        axes.spines.bottom.set_visible(False)
        every = math.ceil(rows * _ROW / height - 1e-9)
        axes.set_yticks(range(0, rows, every), names[::every], fontsize=7)
        for start, stop, band in bands:
            if start:
                axes.axhline(start - 0.5, color=TEXT, linewidth=0.8)
            middle = (rows - (start + stop) / 2) / rows
            axes.text(1.01, middle, band, transform=axes.transAxes, rotation=270, va="center", fontsize=8)
        columns = len(layers.steps)
        ticks = sorted({round(i * (columns - 1) / 5) for i in range(6)})
        axes.set_xticks(ticks, [str(layers.steps[i]) for i in ticks])
        axes.set_xlabel("step")
        bar = figure.colorbar(image, ax=axes, location="top", aspect=45, fraction=0.05, pad=0.02)
        bar.ax.xaxis.set_major_locator(LogLocator(numticks=6) if logarithmic else MaxNLocator(5))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        bar.ax.tick_params(labelsize=8)
        bar.set_label(label, fontsize=8.5)
        bar.outline.set_visible(False)
        return to_svg(figure, (), salt)


def _steps_axis(axes: Any, places: Sequence[float], whole: bool) -> None:
    """Tick whole numbers where there are no others, and give a single place a neighbourhood instead of a magnified point."""
    from matplotlib.ticker import MaxNLocator

    if whole:
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    if len(set(places)) == 1:
        axes.set_xlim(places[0] - 1, places[0] + 1)
        axes.set_xticks([places[0]])


def _bands(rows: Sequence[str]) -> tuple[list[str], list[tuple[int, int, str]]]:
    """Return the rows' names without their operand, and (start, stop, operand) for each stretch that shares one.

    Rows keep their whole names where they do not end in an operand, or a band would be too low for its label.
    """
    endings = [row.rpartition(".")[2] for row in rows]
    if not set(endings) <= set(OPERANDS) or min(endings.count(end) for end in endings) < _LEAST_BAND:
        return list(rows), []
    bands = [(endings.index(end), endings.index(end) + endings.count(end), end) for end in dict.fromkeys(endings)]
    return [row.rpartition(".")[0] for row in rows], bands


def _limit_to_end(axes: Any, series: Sequence[Series]) -> None:
    shown = [line.finite() for line in series]
    shown = [line for line in shown if line.values]
    tops = sorted(max(line.values[_beginning(line) :]) for line in shown)
    if not tops:
        return
    low, top = min(min(line.values) for line in shown), tops[len(tops) - 1 - len(tops) // 20]
    if top > low:
        axes.set_ylim(low - 0.06 * (top - low), top + 0.06 * (top - low))


def _beginning(line: Series) -> int:
    return max(1, len(line.values) // 10) if len(line.values) > 2 else 0


def _rounded(attribute: re.Match[str]) -> str:
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])
    return re.sub(r"\s+", " ", text)


@contextmanager
def drawing(salt: str, *, ink: str = TEXT, grid: str = GRID, paper: str = "none") -> Iterator[None]:
    """Set matplotlib to the look of all figures: by default in the colours that a page replaces.

    The colours are those of text, of grid and axes, and of the ground. ``salt`` fixes the ids in an SVG.
    """
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": salt,
        "font.size": _FONT,
        "axes.labelsize": _FONT,
        "axes.titlesize": _FONT,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.left": False,
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "savefig.facecolor": paper,
        "axes.xmargin": 0.01,
        "text.parse_math": False,  # a layer may be called "$x$"
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the report
        parameters: Any = mpl.rcParams  # its keys are typed as literals
        parameters.update(settings)
        yield


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of that many inches, and its axes; within ``drawing``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def new_axes_of(width: float, height: float, rows: int) -> tuple[Any, list[Any]]:
    """Return a figure of that many inches, and axes below each other that share their x axis; within ``drawing``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])


def to_svg(figure: Any, looks: Sequence[Style], salt: str) -> str:
    """Return the figure as an ``<svg>`` element for a page: colours from the page, ids of its own, short numbers."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for look in looks:
        svg = svg.replace(look.placeholder, look.color)
    svg = svg.replace(TEXT, "currentColor").replace(GRID, "var(--grid)").replace(EMPTY, "var(--raised)")
    svg = re.sub(r"<style.*?</style>|font-family: [^;\"]*; ?", "", svg, flags=re.DOTALL)  # the page's apply
    svg = re.sub(r'( id="|="#|url\(#)', rf"\g<1>{salt}-", svg)
    svg = re.sub(r' (?:d|x|y|width|height|transform)="[^"]*"', _rounded, svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg)
    return svg.replace("xlink:href", "href").strip()
