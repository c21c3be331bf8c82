"""Draw the pictures of ``docs/casts.md`` with the library's own casts: ``python docs/make_pictures.py [FOLDER]``.

The same library and the same matplotlib draw the same files: nothing depends on the time or on a random generator.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from altgrad_core import quantize
from altgrad_core.analysis.figures import drawing
from altgrad_core.analysis.formats import sqnr
from altgrad_core.analysis.formats.facts import positive_values
from altgrad_core.analysis.formats.figure import GRID, INK, PAPER, SERIES, power_label, powers_of_two, staircase, svg_of
from altgrad_core.numerics import get_format
from altgrad_core.numerics.blocks import block_scale
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.modes import ROUNDINGS
from altgrad_core.numerics.scaling import scale_for
from altgrad_core.numerics.statistics import CastStatistics
from altgrad_core.numerics.stochastic import Draw

BLUE, RED, GREEN, PURPLE, ORANGE, _ = SERIES
SOFT = "#8a8f98"
WIDTH = 6.6  # inches of 72 units


def figure(height, rows=1, columns=1, **options):
    """Return a figure and its axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    made = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    return made, made.subplots(rows, columns, **options)


def between(low, high, points):
    """Return evenly spaced numbers, both ends included."""
    return [low + (high - low) * i / (points - 1) for i in range(points)]


def ticks(axes, places, low, high, color):
    """Draw vertical lines as one path, which keeps the file small; ``low`` and ``high`` are numbers or one for each."""
    count = len(places)
    lows, highs = ([end] * count if isinstance(end, float) else end for end in (low, high))
    x = [value for place in places for value in (place, place, math.nan)]
    y = [value for ends in zip(lows, highs, strict=True) for value in (*ends, math.nan)]
    axes.plot(x, y, color=color, linewidth=0.8)


def signal(size, deviation=1.0):
    """Return quantiles of a normal distribution in a fixed shuffled order."""
    return torch.tensor(sqnr.normal_quantiles(size)) * deviation


def number_line():
    """Return where the values of five formats lie, evenly and in powers of two."""
    names = ["e2m1fn", "e0m7f", "e3m4", "e4m3fn", "e5m2"]
    made, (top, bottom) = figure(4.3, 2)
    for row, name in enumerate(reversed(names)):
        values = positive_values(get_format(name))
        color = SERIES[names.index(name)]
        ticks(top, [0.0, *(value / values[-1] for value in values)], row - 0.31, row + 0.31, color)
        ticks(bottom, values, row - 0.31, row + 0.31, color)
    for axes, title in (
        (top, "Values from 0 to the largest, which is drawn at 1"),
        (bottom, "The same in powers of two"),
    ):
        axes.set_title(title, loc="left")
        axes.set_yticks(range(len(names)), reversed(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(visible=False, axis="y")
    powers_of_two(bottom.xaxis, bottom.set_xscale)
    return made


def steps():
    """Return the staircase of the smallest interesting format, with what happens where."""
    made, axes = figure(4.0)
    x = between(0, 9, 3601)
    axes.plot(x, x, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(x, staircase(get_format("e2m1fn"), x), color=BLUE, linewidth=1.8)
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0]
    axes.plot(ties, staircase(get_format("e2m1fn"), ties), "o", color=RED, markersize=5, zorder=3)
    regions = [(0, 0.25, "#f3dcd2"), (0.25, 1, "#fbf0da"), (7, 9, "#e3ecf5")]
    for low, high, color in regions:
        axes.axvspan(low, high, color=color, linewidth=0, zorder=0)
    soft, red = ({"arrowstyle": "-", "color": color, "linewidth": 0.8} for color in (SOFT, RED))
    axes.annotate("becomes 0", (0.13, 0.08), (1.6, 0.3), va="center", arrowprops=soft)
    axes.annotate("subnormal: the spacing\nstays that from 1 to 2", (0.6, 0.7), (0.15, 3.6), arrowprops=soft)
    axes.text(8.0, 5.2, "saturates:\n6, the largest", ha="center", va="top")
    axes.annotate("tie: to the\neven code", (5.0, 4.0), (5.3, 2.6), arrowprops=red)
    axes.annotate(
        "tie of 6 and 8: the even code\nis that of 8, beyond the largest", (7.0, 6.0), (5.3, 1.0), arrowprops=red
    )
    axes.set_xlim(0, 9)
    axes.set_ylim(-0.2, 6.6)
    axes.set_yticks([0, 0.5, 1, 1.5, 2, 3, 4, 6], ["0", "0.5", "1", "1.5", "2", "3", "4", "6"])
    axes.set_xlabel("x")
    axes.set_ylabel("cast of x to e2m1fn")
    return made


def roundings():
    """Return the six rounding modes on one grid."""
    made, grid = figure(5.0, 2, 3, sharex=True, sharey=True)
    x = between(-2.2, 2.2, 881)
    fmt = get_format("e2m1fn")
    values = torch.tensor(x, dtype=torch.float64)
    for axes, mode in zip(grid.flatten(), ROUNDINGS, strict=True):
        axes.plot(x, x, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        if mode == "stochastic":
            chosen = values[::10]
            draws = torch.stack([quantize(chosen, fmt, rounding=mode, draw=Draw(seed=i)) for i in range(256)])
            for one in draws[:6]:
                axes.plot(chosen, one, ".", color=BLUE, markersize=2.6, alpha=0.6, markeredgewidth=0)
            axes.plot(chosen, draws.mean(dim=0), color=RED, linewidth=1.2)
            axes.text(-2.1, 2.2, "dots: 6 draws\nline: mean of 256", fontsize=7.5, va="top")
        else:
            axes.plot(x, staircase(fmt, x, mode), color=BLUE, linewidth=1.6)
        axes.set_title(mode, loc="left")
        axes.set_xticks([-2, -1, 0, 1, 2])
        axes.set_yticks([-2, -1, 0, 1, 2])
    return made


def saturation():
    """Return what becomes of values beyond the largest in two formats."""
    made, both = figure(3.2, 1, 2)
    for axes, name, word in ((both[0], "e4m3fn", "NaN"), (both[1], "e5m2", "Inf")):
        fmt = get_format(name)
        largest, edge = fmt.max_finite, fmt.overflow_threshold
        low, high = largest * 4 / 7, largest * 10 / 7
        x = between(low, high, 3201)
        y = staircase(fmt, x, saturation="none")
        kept = [value if math.isfinite(value) else math.nan for value in y]
        beyond = [value for value, cast_to in zip(x, y, strict=True) if not math.isfinite(cast_to)]
        ceiling = largest * 1.25
        axes.plot(x, kept, color=INK, linewidth=1.8, label="all modes")
        axes.plot(beyond, [largest] * len(beyond), color=BLUE, linewidth=1.8, label="finite, propagate")
        axes.plot(beyond, [ceiling] * len(beyond), color=RED, linewidth=1.8, label="none")
        axes.axvline(edge, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(edge * 1.01, low * 1.08, f"{edge:g}")
        values = [low * (1 + i / 4) for i in range(4)]
        axes.set_yticks([*values, ceiling], [*(f"{value:g}" for value in values), word])
        axes.set_xticks([low, largest, high], [f"{value:g}" for value in (low, largest, high)])
        axes.set_ylim(low * 0.95, ceiling * 1.06)
        axes.set_title(name, loc="left")
        axes.set_xlabel("x")
    both[0].set_ylabel("cast of x")
    made.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return made


def stochastic():
    """Return a weight that many small updates reach, or do not."""
    made, axes = figure(3.0)
    step, count = 2.0**-8 * 1.5, 200
    exact = [1 + step * i for i in range(count + 1)]
    axes.plot(exact, color=SOFT, linewidth=1.0, linestyle=(0, (4, 3)), label="exact sum")
    nearest = walk(step, count, 1, "nearest_even")
    axes.plot(nearest[:, 0], color=RED, linewidth=1.6, label="nearest_even")
    many = walk(step, count, 64, "stochastic")
    for i in range(5):
        axes.plot(many[:, i], color=BLUE, linewidth=0.9, alpha=0.5, label="stochastic, 5 weights" if i == 0 else None)
    axes.plot(many.mean(dim=1), color=BLUE, linewidth=1.8, label="mean of 64 weights")
    axes.legend(loc="upper left", frameon=False)
    axes.set_xlabel("updates of 0.0059")
    axes.set_ylabel("weight held in e4m3fn")
    return made


def walk(step, count, weights, mode):
    """Return [count + 1, weights]: weights of 1 after each addition of ``step``, held in e4m3fn."""
    path = [torch.ones(weights)]
    for i in range(count):
        draw = Draw(seed=0, step=i, name="weight")
        path.append(quantize(path[-1] + step, "e4m3fn", rounding=mode, draw=draw))
    return torch.stack(path)


def scales():
    """Return the magnitudes of a gradient-like tensor beside a format's range, without and with a scale."""
    made, both = figure(4.4, 2, sharex=True)
    fmt = get_format("e4m3fn")
    x = signal(1 << 15, 3e-3)
    scale = scale_for(x.abs().amax(), fmt, power_of_two=True, margin=0).item()
    edges = [2.0 ** (e / 2) for e in range(-48, 27)]
    for axes, used in ((both[0], 1.0), (both[1], scale)):
        size = (x.abs() / used).tolist()
        _, vector = cast(x, fmt, scale=used, statistics=True)
        said = CastStatistics.from_values(vector.tolist())
        axes.axvspan(edges[0], fmt.min_positive / 2, color="#f3dcd2", linewidth=0, zorder=0)
        axes.axvspan(fmt.min_positive / 2, fmt.min_normal, color="#fbf0da", linewidth=0, zorder=0)
        axes.axvspan(fmt.max_finite, edges[-1], color="#e3ecf5", linewidth=0, zorder=0)
        axes.hist(size, bins=edges, color=BLUE, histtype="stepfilled", alpha=0.85)
        axes.set_title("no scale" if used == 1 else f"scale {power_label(used)}", loc="left")
        axes.set_title(
            f"{100 * said.underflow_rate:.2f} % become 0, {100 * said.subnormal / said.elements:.1f} % subnormal, "
            f"SQNR {said.sqnr_db:.1f} dB", loc="right",
        )  # fmt: skip
        axes.set_yticks([])
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, axes.get_ylim()[1] * 1.18)
        powers_of_two(axes.xaxis, axes.set_xscale)
    names = ((2.0**-17.5, "0"), (2.0**-8.1, "subnormal"), (2.0**1.5, "normal"), (2.0**10.9, "clamped"))
    for place, name in names:
        both[0].text(place, 0.97, name, transform=both[0].get_xaxis_transform(), ha="center", va="top", fontsize=8.5)
    both[1].set_xlabel("magnitude of x / scale")
    return made


def blocks():
    """Return a row with an outlier, under one scale and under one scale for each block."""
    made, both = figure(4.2, 2, sharex=True, sharey=True)
    x = signal(128, 1.0)
    x[70] = 40.0
    fmt, block_format = get_format("e2m1fn"), get_format("mxfp4")
    one = scale_for(x.abs().amax(), fmt, power_of_two=True, margin=0)
    found, _ = block_scale(x, block_format)
    ways = (
        (quantize(x, fmt, scale=one), f"e2m1fn, one scale: {one.item():g}"),
        (quantize(x, block_format), "mxfp4, a scale for 32: " + ", ".join(f"{s:g}" for s in found.flatten().tolist())),
    )
    for axes, (q, title) in zip(both, ways, strict=True):
        lost = int((q == 0).sum())
        axes.set_title(title, loc="left")
        axes.set_title(
            f"{lost} of 128 become 0, SQNR without the 40: {_without_outlier(x, q):.1f} dB", loc="right", fontsize=8.5
        )
        ticks(axes, range(128), 0.0, x.tolist(), SOFT)
        axes.plot(q.tolist(), ".", color=BLUE, markersize=4)
        for edge in (31.5, 63.5, 95.5):
            axes.axvline(edge, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
        axes.set_ylim(-4.6, 4.6)
        axes.set_xlim(-1.5, 128.5)
        axes.set_xticks([0, 32, 64, 96, 127])
        axes.annotate("40", (70, 4.4), (75, 3.6), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.7})
    both[1].set_xlabel("element: line x, dot its cast")
    return made


def _without_outlier(x, q):
    keep = torch.ones(128, dtype=torch.bool)
    keep[70] = False
    return sqnr.sqnr_db(x[keep], q[keep])


def error():
    """Return the largest relative error by magnitude."""
    made, axes = figure(3.4)
    for name, color in (("e5m2", RED), ("e4m3fn", BLUE), ("e3m4", GREEN), ("e0m7f", PURPLE)):
        places, worst = [], []
        for e in range(-20 * 4, 18 * 4):
            x = between(2.0 ** (e / 4), 2.0 ** ((e + 1) / 4), 65)
            y = staircase(get_format(name), x)
            places.append(2.0 ** ((e + 0.5) / 4))
            worst.append(max(abs(b - a) / a for a, b in zip(x, y, strict=True)))
        axes.plot(places, worst, color=color, linewidth=1.6, label=name)
    powers_of_two(axes.xaxis, axes.set_xscale)
    powers_of_two(axes.yaxis, axes.set_yscale)
    ticks = [2.0**-7, 2.0**-5, 2.0**-4, 2.0**-3, 2.0**-2, 1.0]
    axes.set_yticks(ticks, ["0.8 %", "3.1 %", "6.3 %", "12.5 %", "25 %", "100 %"])
    axes.set_xlabel("magnitude of x")
    axes.set_ylabel("largest relative error")
    axes.legend(loc="upper center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 1.16))
    return made


def noise():
    """Return the SQNR of a normal signal over its amplitude."""
    made, axes = figure(3.4)
    amplitudes = [2.0 ** (e / 2) for e in range(-44, 41)]
    for name, color in (("e5m2", RED), ("e4m3fn", BLUE), ("e3m4", GREEN), ("e0m7f", PURPLE), ("mxfp8_e4m3", ORANGE)):
        _, decibels = sqnr.curve(get_format(name), amplitudes)
        dashes = (0, (3, 2)) if name.startswith("mx") else "solid"
        axes.plot(amplitudes, decibels, color=color, linewidth=1.6, label=name, linestyle=dashes)
    powers_of_two(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("standard deviation of a normal signal, scale 1")
    axes.set_ylabel("SQNR in dB")
    axes.legend(loc="upper center", ncols=5, frameon=False, bbox_to_anchor=(0.5, 1.16))
    return made


PICTURES = {
    "number-line": number_line,
    "steps": steps,
    "roundings": roundings,
    "stochastic": stochastic,
    "saturation": saturation,
    "scales": scales,
    "blocks": blocks,
    "error": error,
    "sqnr": noise,
}


def draw(name):
    """Return a picture as SVG text."""
    with drawing(f"casts-{name}", ink=INK, grid=GRID, paper=PAPER):
        return svg_of(PICTURES[name]())


def main(folder):
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (folder / f"{name}.svg").write_text(draw(name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("pictures"))
