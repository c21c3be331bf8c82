"""A figure of the report with its data, and a run as the figures draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.figures import REST, Style
from altgrad_core.analysis.rows import Row
from altgrad_core.analysis.runs import Run
from altgrad_core.analysis.series import Series, data_uri, series_csv

# Values that a figure's CSV holds at most: of more it has every so manieth, so that hundreds of runs make a page that opens.
MOST_VALUES = 60_000


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
    """What is drawn in which look."""


@attrs.frozen(kw_only=True)
class Drawn:
    """A run as figures draw it."""

    label: str
    """Its name in the comparison."""
    unit: str
    """What the legend calls it: its name, or that of its group of seeds, whose runs share a look."""
    run: Run
    row: Row
    look: Style
    """``REST`` for one of many."""


def legend(drawn: Sequence[Drawn]) -> list[tuple[str, Style]]:
    """Return each unit with its look, and last how many runs have none of their own."""
    units = {its.unit: its.look for its in drawn if its.look is not REST}
    rest = sum(its.look is REST for its in drawn)
    return [*units.items(), *([(f"{rest} more runs", REST)] if rest else [])]


def data_of(series: Sequence[Series], over: str = "step") -> tuple[str, str]:
    """Return the link that holds the series as CSV, and a sentence on what it leaves out, which is mostly nothing."""
    stride = math.ceil(sum(len(line.steps) for line in series) / MOST_VALUES)
    if stride <= 1:
        return data_uri(series_csv(series, over)), ""
    thinned = [line.every(stride) for line in series]
    said = f"The CSV holds one of {stride} logged steps; altgrad export writes all."
    return data_uri(series_csv(thinned, over)), said


def sentences(*parts: str) -> str:
    """Return the parts that are not empty as one text."""
    return " ".join(part for part in parts if part)
