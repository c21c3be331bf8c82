"""The figures over the steps: losses, their distance from the baseline's, gradients, and what casts lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.figures import lines
from altgrad_core.analysis.report.figure import Drawn, Figure, data_of, legend, sentences
from altgrad_core.analysis.runs import Run
from altgrad_core.analysis.series import Series, smoothing_width

_BATCH_KEYS = ("seed", "train.batch_size", "train.accumulate", "model.block_size")


@attrs.frozen(kw_only=True)
class Curve:
    """A metric as a figure."""

    metric: str
    key: str
    title: str
    ylabel: str
    caption: str = ""
    factor: float = 1.0
    """What values are multiplied by; a percentage begins at zero."""
    robust: bool = False
    smooth: bool = True


LOSSES = (
    Curve(
        metric="train/loss", key="training-loss", title="Training loss", ylabel="nats a token", robust=True,
        caption="The beginning may leave the axis at the top. A cross marks a step with NaN or infinity.",
    ),
    Curve(
        metric="val/loss", key="validation-loss", title="Validation loss", ylabel="nats a token", robust=True, smooth=False,
        caption="The beginning may leave the axis at the top.",
    ),
)  # fmt: skip
INNER = (
    Curve(
        metric="train/grad_norm", key="gradient-norm", title="Gradient norm", ylabel="L2 norm",
        caption="Of all parameters, before clipping.",
    ),
    Curve(
        metric="grad_cos_sim", key="gradient-cosine", title="Gradient against FP32: direction", ylabel="cosine similarity",
        caption="Mean over layers of the cosine between the gradient and that of an FP32 pass at the same weights, "
        "on the same batch. 1 is the same direction.",
    ),
    Curve(
        metric="shadow_grad_snr_db", key="gradient-snr", title="Gradient against FP32: SNR", ylabel="dB",
        caption="Mean over layers of 20 log10(norm of the FP32 gradient / norm of the difference). At 0 dB the error is as "
        "large as the gradient; a run whose gradients are FP32's own has no line.",
    ),
    Curve(
        metric="overflow_rate", key="overflow", title="Overflow", ylabel="% of cast elements", factor=100,
        caption="Elements beyond the format's largest value, mean over layers and operands.",
    ),
    Curve(
        metric="underflow_rate", key="underflow", title="Underflow", ylabel="% of cast elements", factor=100,
        caption="Non-zero elements that became zero, mean over layers and operands.",
    ),
    Curve(
        metric="bit_stall_rate", key="bit-stall", title="Bit stall", ylabel="% of weights", factor=100,
        caption="Weights with a gradient whose value, as the matrix product reads it, the step leaves unchanged. Where "
        "FP32 master weights are kept, small updates still add up there until the value moves.",
    ),
    Curve(
        metric="scale_log2", key="scale", title="Scales", ylabel="log2 of the decode scale", smooth=False,
        caption="Mean over layers and operands, as the casts used them: under delayed scaling they follow the largest "
        "magnitudes of earlier steps.",
    ),
)  # fmt: skip


def step_figures(drawn: Sequence[Drawn]) -> list[Figure]:
    """Return the figures for which some run has values."""
    made = [
        *(curve_figure(drawn, curve) for curve in LOSSES),
        _against(drawn, difference=True),
        _against(drawn, difference=False),
        *(curve_figure(drawn, curve) for curve in INNER),
    ]
    return [figure for figure in made if figure is not None]


def curve_figure(drawn: Sequence[Drawn], curve: Curve) -> Figure | None:
    """Return the figure of a metric; None when no run has a finite value of it."""
    found = [(its, Series(its.label, *its.run.metrics(curve.metric))) for its in drawn]
    found = [(its, line) for its, line in found if line.steps and (curve.robust or line.finite().steps)]
    if not found:
        return None
    series = [line for _, line in found]
    looks = [its.look for its, _ in found]
    shown = [line.scaled(curve.factor) for line in series]
    width = smoothing_width(max(len(line.steps) for line in series)) if curve.smooth else 1
    smoothed = f"Strong: mean over {width} logged steps around each; faint: as logged." if width > 1 else ""
    drawing = lines(
        [line.smooth(width) for line in shown], looks, faint=shown if width > 1 else (), ylabel=curve.ylabel,
        from_zero=curve.factor != 1, robust=curve.robust, salt=curve.key,
    )  # fmt: skip
    csv, left_out = data_of(series)
    return Figure(
        key=curve.key,
        title=curve.title,
        caption=sentences(curve.caption, smoothed, left_out),
        svg=Markup(drawing),
        csv=csv,
        legend=legend([its for its, _ in found]),
    )


def _against(drawn: Sequence[Drawn], *, difference: bool) -> Figure | None:
    """Draw the distance from the baseline by step: a line only where both saw the same batches, so that noise cancels.

    Where no pair of runs did, all have lines.
    """
    by_label = {its.label: its for its in drawn}
    pairs = [(its, by_label[its.row.compared_with]) for its in drawn if its.row.compared_with in by_label]
    same_batches = [(its, base) for its, base in pairs if _same_batches(its)]
    training = [(its, _distance(its, base, "train/loss", difference)) for its, base in same_batches or pairs]
    validation = [(its, _distance(its, base, "val/loss", difference)) for its, base in pairs]
    training = [(its, line) for its, line in training if line.steps]
    validation = [(its, line) for its, line in validation if line.steps]
    if not training and not validation:
        return None
    width = smoothing_width(max((len(line.steps) for _, line in training), default=0))
    over = f", mean over {width} logged steps around each" if width > 1 else ""
    key = "difference" if difference else "ratio"
    drawing = lines(
        [line.smooth(width) for _, line in training], [its.look for its, _ in training],
        dots=[(line, its.look) for its, line in validation],
        ylabel="nats a token above" if difference else "% above", zero=True, salt=key,
    )  # fmt: skip
    data = [Series(f"{line.label} training", line.steps, line.values) for _, line in training]
    data += [Series(f"{line.label} validation", line.steps, line.values) for _, line in validation]
    csv, left_out = data_of(data)
    name = next((its.label for its in drawn if its.row.baseline), "the baseline")
    own_seed = "each run against the one of its seed, " if len({base.label for _, base in pairs}) > 1 else ""
    others = "Runs on other batches have dots alone." if 0 < len(same_batches) < len(pairs) else ""
    return Figure(
        key=key,
        title=f"Loss against {name}: {key}",
        caption=sentences(
            f"Line: {own_seed}training loss at the same step{' on the same batch' if same_batches else ''}{over}.",
            "Dots: validation loss. Above 0 is worse.",
            others,
            left_out,
        ),
        svg=Markup(drawing),
        csv=csv,
        legend=legend([its for its in drawn if its.label in {line.label for _, line in (*training, *validation)}]),
    )


def _same_batches(its: Drawn) -> bool:
    """Whether the run saw the batches of the one it is compared with."""
    return not any(key.split(".")[0] == "data" or key in _BATCH_KEYS for key in its.row.differs_in)


def _distance(its: Drawn, base: Drawn, metric: str, difference: bool) -> Series:
    """Return the difference in nats, or the ratio as % above, at the steps at which both have the metric."""
    measure: Callable[[float, float], float] = _minus if difference else _percent_above
    return Series(its.label, *_common(its.run, base.run, metric, measure))


def _minus(value: float, other: float) -> float:
    return value - other


def _percent_above(value: float, other: float) -> float:
    return 100 * (value / other - 1)


def _common(
    run: Run, base: Run, metric: str, measure: Callable[[float, float], float]
) -> tuple[list[int], list[float]]:
    theirs = dict(zip(*base.metrics(metric), strict=True))
    pairs = [(step, value) for step, value in zip(*run.metrics(metric), strict=True) if theirs.get(step)]
    return [step for step, _ in pairs], [measure(value, theirs[step]) for step, value in pairs]
