"""Where the values that are cast lie on the grids of their formats: by operand, and the casts that lose most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.grid_figure import LEGEND, Panel, grid_figure
from altgrad_core.analysis.report.figure import Drawn, Figure, sentences
from altgrad_core.analysis.report.layers import MOST_MAPS
from altgrad_core.analysis.report.many import by_distance
from altgrad_core.analysis.series import csv_text, data_uri
from altgrad_core.recipes.recipe import OPERANDS
from altgrad_core.training.histograms import CastHistogram

WORST = 6
"""Casts of a run that are drawn one by one."""
_MOST_ROWS = 1000  # of a figure's CSV


@attrs.frozen(kw_only=True)
class Grids:
    """The section: a figure a run of its operands, and one of its casts that lose most."""

    operands: Sequence[Figure]
    casts: Sequence[Figure]
    said: str
    """Which runs are not shown; may be empty."""


def grids(drawn: Sequence[Drawn]) -> Grids | None:
    """Return the section; None when no run has histograms."""
    having = [its for its in drawn if any(its.run.histograms.values())]
    if not having:
        return None
    chosen = having if len(having) <= MOST_MAPS else by_distance(having)[:MOST_MAPS]
    some = f"The {MOST_MAPS} of {len(having)} runs that ended furthest from the baseline."
    return Grids(
        operands=[_by_operand(its, index) for index, its in enumerate(chosen)],
        casts=[_worst(its, index) for index, its in enumerate(chosen)],
        said=some if len(having) > len(chosen) else "",
    )


def merged(found: Sequence[CastHistogram]) -> CastHistogram:
    """Return casts to one format as one; which codes they used together is not known."""
    filled = [its for its in found if its.counts]
    first = min((its.first for its in filled), default=0)
    counts = [0] * (max((its.edges[-1] for its in filled), default=first) - first)
    for its in filled:
        for index, count in enumerate(its.counts):
            counts[its.first - first + index] += count
    fields = ("elements", "zeros", "underflow", "subnormal", "overflow", "nan", "inf")
    sums = {field: sum(getattr(its, field) for its in found) for field in fields}
    return attrs.evolve(found[0], codes=None, first=first, counts=counts, **sums)


def _by_operand(its: Drawn, index: int) -> Figure:
    step, found = _last(its)
    groups: dict[tuple[str, str], list[CastHistogram]] = {}
    of = {name: name.rpartition(".")[2] for name in found}
    for operand in dict.fromkeys([*OPERANDS, *of.values()]):  # attention, norms have operands of their own
        for name, cast in found.items():
            if of[name] == operand:
                groups.setdefault((operand, cast.format), []).append(cast)
    panels = []
    for (operand, format_), casts in groups.items():
        whole = merged(casts)
        layers = f"{len(casts)} layers" if len(casts) > 1 else "1 layer"
        panels.append(Panel(f"{operand.replace('_', ' ')} in {format_}, {layers}", _fates(whole), whole))
    key = f"grid-{index}"
    return Figure(
        key=key,
        title=f"{its.label}: values on the grid",
        caption=sentences(f"At step {step}, all layers together.", "The data has each of them."),
        svg=Markup(grid_figure(panels, salt=key)),
        csv=data_uri(_csv([(step, name, cast) for name, cast in found.items()])),
        legend=LEGEND,
    )


def _worst(its: Drawn, index: int) -> Figure:
    step, found = _last(its)
    worst = sorted(found, key=lambda name: -found[name].lost)[:WORST]
    panels = [Panel(name, f"{found[name].format}: {_fates(found[name])}", found[name]) for name in worst]
    shown = f"{len(worst)} of {len(found)}" if len(found) > len(worst) else f"{len(worst)}"
    history = [(at, name, casts[name]) for at, casts in its.run.histograms.items() for name in worst if name in casts]
    stride = math.ceil(len(history) / len(worst) / (_MOST_ROWS // WORST))
    steps = {at for place, at in enumerate(its.run.histograms) if place % stride == 0}
    left_out = f"The CSV holds one of {stride} measured steps." if stride > 1 else ""
    key = f"grid-casts-{index}"
    return Figure(
        key=key,
        title=f"{its.label}: "
        + (
            f"the {shown} casts that lose most"
            if found[worst[0]].lost
            else f"{shown} casts, none of which loses a value"
        ),
        caption=sentences(f"At step {step}; the data has every measured step.", _fewest_codes(found), left_out),
        svg=Markup(grid_figure(panels, salt=key)),
        csv=data_uri(_csv([row for row in history if row[0] in steps])),
        legend=LEGEND,
    )


def _fewest_codes(found: Mapping[str, CastHistogram]) -> str:
    """Return which cast uses the smallest part of its format's codes; empty where codes are not counted."""
    parts = {
        name: its.codes / its.range.codes for name, its in found.items() if its.codes is not None and its.range.codes
    }
    if not parts:
        return ""
    name = min(parts, key=lambda cast: parts[cast])
    its = found[name]
    return f"Of all casts {name} uses the fewest codes: {its.codes} of the {its.range.codes} numbers of {its.format}."


def _last(its: Drawn) -> tuple[int, Mapping[str, CastHistogram]]:
    """Return the last step with histograms, and these."""
    return next((step, found) for step, found in reversed(list(its.run.histograms.items())) if found)


def _fates(its: CastHistogram) -> str:
    return f"{share(its.underflow, its.elements)} to zero, {share(its.overflow, its.elements)} clamped"


def share(count: int, total: int) -> str:
    """Return a part as a percentage of two digits; a small one that is not 0 does not become it."""
    percent = 100 * count / total if total else 0.0
    if 0 < percent < 0.001:
        return "<0.001 %"
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"


def _csv(rows: Sequence[tuple[int, str, CastHistogram]]) -> str:
    """Return a row a cast and step: what became of its elements, then how many lie in each binade, by its exponent."""
    binades = sorted({exponent for _, _, its in rows for exponent in its.edges[:-1]})
    fields = ("format", "elements", "zeros", "underflow", "subnormal", "overflow", "nan", "inf", "codes")
    body = []
    for step, name, its in rows:
        counts = dict(zip(its.edges, its.counts, strict=False))
        facts = ["" if (value := getattr(its, field)) is None else value for field in fields]
        body.append([step, name, *facts, *(counts.get(exponent, 0) for exponent in binades)])
    return csv_text([["step", "cast", *fields, *(f"2^{exponent}" for exponent in binades)], *body])
