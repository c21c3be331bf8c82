"""The report of an experiment: one HTML file that needs nothing else, to read, print, send and keep.

The same run folders give the same bytes: the page holds no time of its own making and no random ids.
"""

from __future__ import annotations

import datetime
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import jinja2
from markupsafe import Markup

from altgrad_core.analysis.compare import Comparison, compare
from altgrad_core.analysis.figures import Style, heatmap, lines, styles
from altgrad_core.analysis.runs import Run, load_experiment_runs
from altgrad_core.analysis.series import (
    Layers,
    Series,
    data_uri,
    layers_by_step,
    layers_csv,
    series_csv,
    smoothing_width,
)
from altgrad_core.analysis.settings import recipe_rows, side_by_side, without
from altgrad_core.analysis.table import COLUMNS, MISSING
from altgrad_core.files import write_whole

REPORT = "report.html"
_MOST_ALERTS = 100
_BATCH_KEYS = ("seed", "train.batch_size", "train.accumulate", "model.block_size")


@attrs.frozen(kw_only=True)
class Figure:
    """A figure with its data."""

    key: str
    """Unique in the page; the name of its CSV file."""
    title: str
    """What is shown."""
    caption: str
    """How it was made, as far as a reader needs it."""
    svg: Markup
    """The drawing."""
    csv: str
    """Link that holds the data."""
    legend: Sequence[tuple[str, Style]] = ()
    """Runs drawn."""


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` for the experiment in ``folder`` (``runs/<experiment>``) and return its path.

    The file is replaced in one step, so that a reader never sees half of it. Raises ``AltgradError`` when the folder
    holds no runs or one of them is damaged, and ``RunFailed`` when the disk is full.
    """
    folder = Path(folder)
    text = render(load_experiment_runs(folder))
    path = folder / REPORT
    write_whole(path, text.encode(errors="backslashreplace"))  # a reason may name a file whose name is not UTF-8
    return path


def render(runs: Sequence[Run]) -> str:
    """Return the page for ``runs`` of one experiment, in their order."""
    comparison = compare(runs)
    looks = styles([row.baseline for row in comparison.rows])
    labels = [row.name for row in comparison.rows]
    named = list(zip(labels, runs, looks, strict=True))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = importlib.resources.files("altgrad_core.analysis").joinpath("report.html.jinja").read_text("utf-8")
    cells = [[column.text(row) for column in COLUMNS] for row in comparison.rows]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != MISSING for row in cells)]
    alerts = [(label, look, alert) for label, run, look in named for alert in run.alerts]
    return environment.from_string(source).render(
        title=runs[0].experiment,
        subtitle=_subtitle(runs, comparison),
        verdicts=list(zip(comparison.rows, looks, strict=True)),
        notes=comparison.notes,
        columns=[COLUMNS[i] for i in shown],
        rows=[
            (row, look, [its[i] for i in shown]) for row, look, its in zip(comparison.rows, looks, cells, strict=True)
        ],
        not_measured=[COLUMNS[i].header for i in range(len(COLUMNS)) if i not in shown],
        figures=_step_figures(named, comparison),
        layer_figures=_layer_figures(named),
        quiet=_quiet(named),
        alerts=alerts[:_MOST_ALERTS],
        alerts_total=len(alerts),
        recipes=[(label, look, recipe_rows(run.config.get("recipe", {}))) for label, run, look in named],
        labels=labels,
        tables=[
            ("Settings", side_by_side([without(run.config, "recipe", "name", "baseline") for run in runs])),
            ("What the runs report", side_by_side([without(run.facts, "environment") for run in runs])),
            ("Environment", side_by_side([run.environment for run in runs])),
        ],
    )


Named = tuple[str, Run, Style]


def _subtitle(runs: Sequence[Run], comparison: Comparison) -> str:
    parts = [f"{len(runs)} runs" if len(runs) > 1 else "1 run"]
    parts.append(f"baseline {comparison.baseline.name}" if comparison.baseline else "no baseline")
    starts = [run.started_s for run in runs if run.started_s is not None]
    if starts:
        day = datetime.datetime.fromtimestamp(min(starts), tz=datetime.UTC)
        parts.append(f"started {day:%Y-%m-%d %H:%M} UTC")
    done = sum(run.status == "done" for run in runs)
    parts.append("all done" if done == len(runs) else f"{done} of {len(runs)} done")
    return " · ".join(parts)


def _step_figures(named: Sequence[Named], comparison: Comparison) -> list[Figure]:
    figures = [
        _over_steps(
            named, "train/loss", "training-loss", "Training loss", "nats a token", robust=True,
            caption="The first tenth may leave the axis at the top. A cross marks a step with NaN or infinity.",
        ),
        _over_steps(
            named, "val/loss", "validation-loss", "Validation loss", "nats a token", robust=True, smooth=False,
            caption="The first tenth may leave the axis at the top.",
        ),
    ]  # fmt: skip
    if comparison.baseline is not None:
        differing = {key for row in comparison.rows for key in row.differs_in}
        paired = not any(key.split(".")[0] == "data" or key in _BATCH_KEYS for key in differing)
        figures.append(_difference(named, comparison.baseline.name, paired))
    figures += [
        _over_steps(
            named, "train/grad_norm", "gradient-norm", "Gradient norm", "L2 norm",
            caption="Of all parameters, before clipping.",
        ),
        _over_steps(
            named, "grad_cos_sim", "gradient-cosine", "Gradient against FP32", "cosine similarity",
            caption="Mean over layers of the cosine between the gradient and that of an FP32 pass at the same weights, "
            "on the same batch. 1 is the same direction.",
        ),
        _over_steps(
            named, "overflow_rate", "overflow", "Overflow", "% of cast elements", factor=100,
            caption="Elements beyond the format's largest value, mean over layers and operands.",
        ),
        _over_steps(
            named, "underflow_rate", "underflow", "Underflow", "% of cast elements", factor=100,
            caption="Non-zero elements that became zero, mean over layers and operands.",
        ),
        _over_steps(
            named, "bit_stall_rate", "bit-stall", "Bit stall", "% of weights", factor=100,
            caption="Weights with a gradient whose value, as the matrix product reads it, the step leaves unchanged. Where "
            "FP32 master weights are kept, small updates still add up there until the value moves.",
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def _series(named: Sequence[Named], metric: str) -> tuple[list[Series], list[Style]]:
    found = [(Series(label, *run.metrics(metric)), look) for label, run, look in named]
    return [line for line, _ in found if line.steps], [look for line, look in found if line.steps]


def _over_steps(
    named: Sequence[Named], metric: str, key: str, title: str, ylabel: str, *, caption: str = "", factor: float = 1.0,
    robust: bool = False, smooth: bool = True,
) -> Figure | None:  # fmt: skip
    series, looks = _series(named, metric)
    if not series:
        return None
    shown = [line.scaled(factor) for line in series]
    width = smoothing_width(max(len(line.steps) for line in series)) if smooth else 1
    smoothed = f"Strong: mean over {width} logged steps around each; faint: as logged." if width > 1 else ""
    drawing = lines(
        [line.smooth(width) for line in shown], looks, faint=shown if width > 1 else (), ylabel=ylabel,
        from_zero=factor != 1, robust=robust, salt=key,
    )  # fmt: skip
    return Figure(
        key=key,
        title=title,
        caption=f"{caption} {smoothed}".strip(),
        svg=Markup(drawing),
        csv=data_uri(series_csv(series)),
        legend=_legend(series, looks),
    )


def _difference(named: Sequence[Named], baseline: str, paired: bool) -> Figure | None:
    """Draw the distance from the baseline by step: ``paired`` runs see the same batches, so their noise cancels."""
    base = next(run for label, run, _ in named if label == baseline)
    others = [(label, run, look) for label, run, look in named if label != baseline]
    training = [(Series(label, *_ratio(run, base, "train/loss")), look) for label, run, look in others]
    validation = [(Series(label, *_ratio(run, base, "val/loss")), look) for label, run, look in others]
    training = [(line, look) for line, look in training if line.steps]
    validation = [(line, look) for line, look in validation if line.steps]
    if not training and not validation:
        return None
    width = smoothing_width(max((len(line.steps) for line, _ in training), default=0))
    over = f", mean over {width} logged steps around each" if width > 1 else ""
    drawing = lines(
        [line.smooth(width) for line, _ in training], [look for _, look in training], dots=validation,
        ylabel="% above the baseline", zero=True, salt="difference",
    )  # fmt: skip
    data = [Series(f"{line.label} training", line.steps, line.values) for line, _ in training]
    data += [Series(f"{line.label} validation", line.steps, line.values) for line, _ in validation]
    drawn = training or validation
    return Figure(
        key="difference",
        title=f"Loss against {baseline}",
        caption=f"Line: training loss at the same step{' on the same batch' if paired else ''}{over}. "
        "Dots: validation loss. "
        "Above 0 is worse.",
        svg=Markup(drawing),
        csv=data_uri(series_csv(data)),
        legend=_legend([line for line, _ in drawn], [look for _, look in drawn]),
    )


def _ratio(run: Run, base: Run, metric: str) -> tuple[list[int], list[float]]:
    theirs = dict(zip(*base.metrics(metric), strict=True))
    pairs = [(step, value) for step, value in zip(*run.metrics(metric), strict=True) if theirs.get(step)]
    return [step for step, _ in pairs], [100 * (value / theirs[step] - 1) for step, value in pairs]


def _legend(series: Sequence[Series], looks: Sequence[Style]) -> list[tuple[str, Style]]:
    return [(line.label, look) for line, look in zip(series, looks, strict=True)]


def _layer_figures(named: Sequence[Named]) -> list[Figure]:
    figures = [
        *_heatmaps(named, "grad_cos_sim", "gradient-cosine", "gradient against FP32", "cosine similarity", high=1.0),
        *_heatmaps(named, "bit_stall_rate", "bit-stall", "bit stall", "% of weights", factor=100, high=100.0),
        *_heatmaps(named, "sqnr_db", "sqnr", "signal to quantization noise", "dB"),
    ]
    watched = {layers.label: len(layers.rows) for layers in _layers(named, "overflow_rate")}
    overflows = [layers.above_zero() for layers in _layers(named, "overflow_rate")]
    overflows = [layers for layers in overflows if layers.rows]
    high = 100 * max((value for layers in overflows for value in _finite(layers)), default=0.0)
    positive = [100 * value for layers in overflows for value in _finite(layers) if value > 0]
    low = max(min(positive, default=0.0), high / 1e6)
    for index, layers in enumerate(overflows):
        percent = attrs.evolve(layers, values=[[100 * value for value in row] for row in layers.values])
        drawing = heatmap(
            percent, label="% of elements", low=min(low, high / 10), high=high, logarithmic=True,
            salt=f"overflow-layers-{index}",
        )  # fmt: skip
        rest = watched[layers.label] - len(layers.rows)
        blank = f"Empty: no overflow, as in the {rest} other casts at every step. " if rest else "Empty: no overflow. "
        figures.append(_layer_figure(f"overflow-layers-{index}", "overflow", layers, drawing, blank))
    return figures


def _heatmaps(
    named: Sequence[Named], metric: str, key: str, what: str, label: str, *, factor: float = 1.0, high: float | None = None
) -> list[Figure]:  # fmt: skip
    """Return a heatmap for each run that has the metric, all on one linear scale."""
    found = _layers(named, metric)
    found = [attrs.evolve(layers, values=[[factor * v for v in row] for row in layers.values]) for layers in found]
    values = [value for layers in found for value in _finite(layers)]
    top = max(values, default=1.0) if high is None else high
    low = min([*values, top - 0.001 * abs(top)])
    figures = []
    for index, layers in enumerate(found):
        salt = f"{key}-layers-{index}"
        drawing = heatmap(layers, label=label, low=low, high=top, logarithmic=False, salt=salt)
        figures.append(_layer_figure(salt, what, layers, drawing, ""))
    return figures


def _layer_figure(key: str, what: str, layers: Layers, drawing: str, blank: str) -> Figure:
    merged = (
        f"Each column is the mean of {layers.steps_per_column} logged steps. " if layers.steps_per_column > 1 else ""
    )
    return Figure(
        key=key,
        title=f"{layers.label}: {what}",
        caption=f"{blank}{merged}The scale is the same for all runs.",
        svg=Markup(drawing),
        csv=data_uri(layers_csv(layers)),
    )


def _layers(named: Sequence[Named], metric: str) -> list[Layers]:
    found = [layers_by_step(run, label, metric) for label, run, _ in named]
    return [layers for layers in found if any(_finite(layers))]


def _finite(layers: Layers) -> list[float]:
    return [value for row in layers.values for value in row if math.isfinite(value)]


def _quiet(named: Sequence[Named]) -> list[str]:
    """Return the runs whose casts were watched and never overflowed: they have no overflow figure."""
    found = [(label, run.metrics("overflow_rate")[1]) for label, run, _ in named]
    return [label for label, values in found if values and not any(values)]
