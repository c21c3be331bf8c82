"""The heatmaps by layer and step: which layer, which operand, when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.figures import heatmap
from altgrad_core.analysis.report.figure import Drawn, Figure, sentences
from altgrad_core.analysis.report.many import by_distance
from altgrad_core.analysis.series import Layers, data_uri, layers_by_step, layers_csv

MOST_MAPS = 6
"""Runs of which a metric is drawn by layer."""
_DECADES = 6  # of a logarithmic scale


@attrs.frozen(kw_only=True)
class Map:
    """A metric by layer and step."""

    metric: str
    key: str
    title: str
    """Of the section; in lower case it names the figures."""
    label: str
    """What the colours mean."""
    factor: float = 1.0
    high: float | None = None
    """Top of the scale; by default the largest value."""
    logarithmic: bool = False
    """For rates: the scale is logarithmic, and rows that are zero throughout are left out."""


MAPS = (
    Map(metric="grad_cos_sim", key="gradient-cosine", title="Gradient against FP32: direction", label="cosine similarity",
        high=1.0),
    Map(metric="shadow_grad_snr_db", key="gradient-snr", title="Gradient against FP32: SNR", label="dB"),
    Map(metric="overflow_rate", key="overflow", title="Overflow", label="% of elements", factor=100, logarithmic=True),
    Map(metric="underflow_rate", key="underflow", title="Underflow", label="% of elements", factor=100, logarithmic=True),
    Map(metric="bit_stall_rate", key="bit-stall", title="Bit stall", label="% of weights", factor=100, high=100.0),
    Map(metric="scale_log2", key="scale", title="Scales", label="log2 of the decode scale"),
    Map(metric="sqnr_db", key="sqnr", title="Signal to quantization noise", label="dB"),
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Section:
    """A metric of several runs."""

    title: str
    figures: Sequence[Figure]
    said: str
    """What the figures do not show; may be empty."""


def layer_sections(drawn: Sequence[Drawn]) -> list[Section]:
    """Return a section for each metric that some run has by layer."""
    return [section for section in (_section(drawn, map_) for map_ in MAPS) if section is not None]


def _section(drawn: Sequence[Drawn], map_: Map) -> Section | None:
    having = [its for its in drawn if its.run.layers(map_.metric)]
    quiet = [its.label for its in having if map_.logarithmic and not any(its.run.metrics(map_.metric)[1])]
    having = [its for its in having if its.label not in quiet]
    chosen = having if len(having) <= MOST_MAPS else by_distance(having)[:MOST_MAPS]
    found = [_scaled(layers_by_step(its.run, its.label, map_.metric), map_.factor) for its in chosen]
    found = [layers for layers in found if _finite(layers)]
    if not found and not quiet:
        return None
    some = (
        f"The {MOST_MAPS} of {len(having)} runs that ended furthest from the baseline."
        if len(having) > MOST_MAPS
        else ""
    )
    none = f"No {_word(map_)} in {_listed(quiet)}." if quiet else ""
    return Section(title=map_.title, figures=_figures(map_, found), said=sentences(some, none))


def _figures(map_: Map, found: Sequence[Layers]) -> list[Figure]:
    watched = [len(layers.rows) for layers in found]
    shown = [layers.above_zero() if map_.logarithmic else layers for layers in found]
    values = [value for layers in shown for value in _finite(layers) if not map_.logarithmic or value > 0]
    if not values:
        return []
    high = max(values) if map_.high is None else map_.high
    low = min(*values, high - 0.001 * abs(high) or -1.0)
    if map_.logarithmic:
        low = min(max(low, high / 10**_DECADES), high / 10)
    figures = []
    for index, (layers, rows) in enumerate(zip(shown, watched, strict=True)):
        if not layers.rows:
            continue
        rest, word = rows - len(layers.rows), _word(map_)
        blank = _blank(layers)
        if map_.logarithmic:
            others = f", as in the {rest} other cast{'s' if rest > 1 else ''} at every step" if rest else ""
            blank = f"Empty: no {word}{others}."
        merged = (
            f"Each column is the mean of {layers.steps_per_column} logged steps." if layers.steps_per_column > 1 else ""
        )
        key = f"{map_.key}-layers-{index}"
        drawing = heatmap(layers, label=map_.label, low=low, high=high, logarithmic=map_.logarithmic, salt=key)
        figures.append(
            Figure(
                key=key,
                title=f"{layers.label}: {word}",
                caption=sentences(blank, merged, "The scale is the same for all runs."),
                svg=Markup(drawing),
                csv=data_uri(layers_csv(layers)),
            )
        )
    return figures


def _blank(layers: Layers) -> str:
    """Return what the cells without a colour are."""
    values = [value for row in layers.values for value in row if not math.isfinite(value)]
    kinds = ["exact (infinitely many dB)"] if any(map(math.isinf, values)) else []
    kinds += ["not a number"] if any(map(math.isnan, values)) else []
    return f"Empty: {' or '.join(kinds)}." if kinds else ""


def _word(map_: Map) -> str:
    return map_.title[0].lower() + map_.title[1:]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_MAPS} more" if len(names) > MOST_MAPS else ""
    return ", ".join(names[:MOST_MAPS]) + more


def _scaled(layers: Layers, factor: float) -> Layers:
    return attrs.evolve(layers, values=[[factor * value for value in row] for row in layers.values])


def _finite(layers: Layers) -> list[float]:
    return [value for row in layers.values for value in row if math.isfinite(value)]
