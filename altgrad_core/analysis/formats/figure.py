"""Figures of formats: density, the steps of the cast near zero and near the largest value, SQNR over amplitude."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altgrad_core.analysis.figures import drawing
from altgrad_core.analysis.formats import sqnr
from altgrad_core.analysis.formats.facts import binades, element_of, facts_of, number
from altgrad_core.errors import AltgradError
from altgrad_core.numerics.formats import BlockFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation

# The report's palette on white.
SERIES = ("#0072b2", "#d55e00", "#008561", "#b4588a", "#b07800", "#1b1d21")
INK, GRID, PAPER = "#1b1d21", "#d9d8d2", "#ffffff"
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)))
ENDINGS = (".png", ".svg", ".html")
MOST = len(SERIES) * len(_DASHES)
_STEPS = 801  # points of a staircase
_BINADES = 4  # shown near zero, from the coarsest format's smallest value on
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TICKS = 9  # of a logarithmic axis, at most
_SHOWN_DB = 100  # above, wide formats would squeeze the narrow ones together


def write(
    path: Path,
    formats: Sequence[Format],
    *,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    tensor: bool = False,
) -> None:
    """Write the figure of up to 18 formats as PNG, SVG or a page of its own, by the file's ending.

    ``tensor`` says that a tensor's SQNR is printed beside it, which the figure then says it does not show.
    """
    if path.suffix not in ENDINGS:
        raise AltgradError(f"--plot writes {', '.join(ENDINGS)} files, got {path.name}.")
    if len(formats) > MOST:
        raise AltgradError(f"--plot tells up to {MOST} formats apart, got {len(formats)}; name fewer.")
    if not path.parent.is_dir():
        raise AltgradError(f"--plot: there is no folder {path.parent}.")
    with drawing("formats", ink=INK, grid=GRID, paper=PAPER):
        figure = _figure(formats, rounding, saturation, tensor=tensor)
        if path.suffix == ".html":
            path.write_text(_page(formats, svg_of(figure)), encoding="utf-8")
        elif path.suffix == ".svg":
            path.write_text(svg_of(figure), encoding="utf-8")
        else:
            figure.savefig(path, dpi=160, metadata={"Software": None})


def svg_of(figure: Any) -> str:
    """Return a figure as SVG: the same bytes from the same data."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _figure(formats: Sequence[Format], rounding: Rounding, saturation: Saturation, *, tensor: bool) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10.5, 7.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    density, curve, near_zero, near_max = figure.subplots(2, 2).flatten()
    for i, format in enumerate(formats):
        look = {"color": SERIES[i % len(SERIES)], "linestyle": _DASHES[i // len(SERIES)], "linewidth": 1.6}
        draw_density(density, format, look)
        _draw_curve(curve, format, formats, rounding, saturation, look)
        # Chance makes no staircase: single casts are points.
        drawn = {"color": look["color"], "marker": ".", "markersize": 2, "linestyle": "none"}
        steps = drawn if rounding == "stochastic" else look
        _draw_near_zero(near_zero, format, _near_zero(formats), rounding, saturation, steps)
        _draw_near_max(near_max, format, rounding, saturation, steps)
    powers_of_two(density.xaxis, density.set_xscale)
    powers_of_two(density.yaxis, density.set_yscale)
    powers_of_two(curve.xaxis, curve.set_xscale)
    _dress(density, "Values in each binade, 2ᵉ to 2ᵉ⁺¹", "magnitude", "number of values")
    what = "a normal signal, not of the tensor" if tensor else "a normal signal"
    _dress(curve, f"SQNR of {what}, no scale", "standard deviation", "dB")
    curve.set_ylim(-3, min(_SHOWN_DB, curve.get_ylim()[1]))
    powers_of_two(near_zero.xaxis, near_zero.set_xscale)
    near_zero.set_ylim(-0.05, 2.1)
    _dress(near_zero, f"Near zero ({rounding})", "x", "cast of x / x")
    _dress(near_max, f"Near the largest value (saturation {saturation})", "x / max", "cast of x / max")
    handles, labels = density.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False)
    return figure


def draw_density(axes: Any, format: Format, look: dict[str, Any]) -> None:
    """Draw the number of values in each binade as a step line over the magnitude."""
    counts = binades(format)
    edges = [math.ldexp(1.0, min(e, 1023)) for e in range(counts[0][0], counts[-1][0] + 2)]
    label = f"{format.name} (element {element_of(format).name})" if isinstance(format, BlockFormat) else format.name
    axes.stairs([n or math.nan for _, n in counts], edges, baseline=None, label=label, **look)


def powers_of_two(axis: Any, set_scale: Any) -> None:
    """Make a drawn axis logarithmic, with labels such as 2⁻⁸: mathematical text is off, since names may hold dollars."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    set_scale("log", base=2)
    low, high = (math.log2(limit) for limit in axis.get_view_interval())
    step = 2 ** max(0, math.ceil(math.log2((high - low) / _TICKS)))
    ticks = range(math.ceil(low / step) * step, math.floor(high) + 1, step)
    axis.set_major_locator(FixedLocator([math.ldexp(1.0, min(e, 1023)) for e in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_label(value)))


def power_label(value: float) -> str:
    """Return a power of two with its exponent raised; 1 for 2^0."""
    exponent = round(math.log2(value))
    return "1" if exponent == 0 else "2" + str(exponent).translate(_RAISED)


def _draw_curve(
    axes: Any,
    format: Format,
    formats: Sequence[Format],
    rounding: Rounding,
    saturation: Saturation,
    look: dict[str, Any],
) -> None:
    if not element_of(format).signed:
        return
    amplitudes, decibels = sqnr.curve(format, sqnr.amplitude_range(formats), rounding=rounding, saturation=saturation)
    axes.plot(amplitudes, decibels, **look)


def _near_zero(formats: Sequence[Format]) -> list[float]:
    """Return numbers, evenly spaced in their logarithm, from below the finest format's values to a few of the coarsest."""
    smallest = [math.log2(element_of(format).min_positive) for format in formats]
    low, high = max(min(smallest) - 2, -1000), max(smallest) + _BINADES
    return [2.0 ** (low + (high - low) * i / (_STEPS - 1)) for i in range(_STEPS)]


def _draw_near_zero(
    axes: Any, format: Format, x: Sequence[float], rounding: Rounding, saturation: Saturation, look: dict[str, Any]
) -> None:
    y = staircase(element_of(format), x, rounding, saturation)
    axes.plot(
        x, [after / before if math.isfinite(after) else math.nan for before, after in zip(x, y, strict=True)], **look
    )


def _draw_near_max(axes: Any, format: Format, rounding: Rounding, saturation: Saturation, look: dict[str, Any]) -> None:
    largest = element_of(format).max_finite
    x = [0.5 + 0.75 * i / (_STEPS - 1) for i in range(_STEPS)]
    y = staircase(element_of(format), [largest * value for value in x], rounding, saturation)
    axes.plot(x, [value / largest if math.isfinite(value) else math.nan for value in y], **look)


def staircase(
    format: Format, x: Sequence[float], rounding: Rounding = "nearest_even", saturation: Saturation = "finite"
) -> list[float]:
    """Return the cast of each x, in float64; infinities and NaN as they come."""
    import torch

    values = torch.tensor(x, dtype=torch.float64)
    cast: list[float] = sqnr.cast(values, format, 1.0, rounding, saturation).tolist()
    return cast


def _dress(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def _page(formats: Sequence[Format], svg: str) -> str:
    rows = []
    for format in formats:
        facts = facts_of(format)
        cells = [
            facts.name, f"{facts.bits:g}", facts.split, number(facts.max_finite), number(facts.min_normal),
            number(facts.min_positive), f"{facts.range_db:.0f} dB", f"{facts.digits:.1f}", facts.specials, facts.source,
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    names = ", ".join(format.name for format in formats)
    heads = ["format", "bits", "E/M", "max", "min normal", "min positive", "range", "digits", "specials", "source"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(names)}</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1d21;"
        "background:#fff}svg{width:100%;height:auto}.wide{overflow-x:auto}table{border-collapse:collapse}"
        "td,th{padding:.3rem .7rem;text-align:left;border-bottom:1px solid #d9d8d2;white-space:nowrap}</style>"
        f"<h1>{html.escape(names)}</h1>{svg[svg.index('<svg') :]}"
        f'<div class="wide"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{"".join(rows)}</table></div>'
        "</html>\n"
    )
