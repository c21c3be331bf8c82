"""What the runs cost: speed over the steps, memory and load over the time, as far as it was sampled."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.figures import lines
from altgrad_core.analysis.report.figure import Drawn, Figure, data_of, legend, sentences
from altgrad_core.analysis.report.steps import Curve, curve_figure
from altgrad_core.analysis.series import Series

_SPEED = Curve(
    metric="train/tokens_per_s", key="speed", title="Speed", ylabel="tokens a second",
    caption="Of each step, without the time that probes took, but for what they count inside the casts.",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Gauge:
    """Something that is sampled beside the training: a key of ``Run.machine``."""

    name: str
    title: str
    ylabel: str
    caption: str


GAUGES = (
    Gauge(name="process_memory_gib", title="Memory of the process", ylabel="GiB", caption="Resident set, on the host."),
    Gauge(name="gpu_memory_gib", title="GPU memory", ylabel="GiB", caption="In use, by whomever, on the fullest GPU."),
    Gauge(name="gpu_utilization_percent", title="GPU load", ylabel="% of the time", caption="Mean over the GPUs."),
    Gauge(name="gpu_power_w", title="GPU power", ylabel="W", caption="All GPUs together."),
    Gauge(name="gpu_temperature_c", title="GPU temperature", ylabel="°C", caption="Of the hottest."),
)


def machine_figures(drawn: Sequence[Drawn]) -> list[Figure]:
    """Return the figures for which some run has samples."""
    made = [curve_figure(drawn, _SPEED), *(_gauge_figure(drawn, gauge) for gauge in GAUGES)]
    return [figure for figure in made if figure is not None]


def _gauge_figure(drawn: Sequence[Drawn], gauge: Gauge) -> Figure | None:
    having = [its for its in drawn if gauge.name in its.run.machine]
    if not having:
        return None
    series = []
    for its in having:
        seconds, values = its.run.machine[gauge.name]
        series.append(Series(its.label, [second / 60 for second in seconds], values))
    key = gauge.name.rpartition("_")[0].replace("_", "-")
    drawing = lines(
        series,
        [its.look for its in having],
        xlabel="minutes of training",
        ylabel=gauge.ylabel,
        from_zero=True,
        salt=key,
    )
    csv, left_out = data_of(series, "minutes")
    return Figure(
        key=key,
        title=gauge.title,
        caption=sentences(gauge.caption, "Time between an interruption and its resume is not counted.", left_out)
        if any(its.run.stretches > 1 for its in having)
        else sentences(gauge.caption, left_out),
        svg=Markup(drawing),
        csv=csv,
        legend=legend(having),
    )
