"""Whether runs end close enough to the baseline: an answer of yes or no, for a machine that asks."""

from __future__ import annotations

import math
import re

from altgrad_core.analysis.compare import Comparison
from altgrad_core.analysis.rows import Row
from altgrad_core.analysis.table import number
from altgrad_core.errors import AltgradError

# 0.1 % of a loss is far below what a seed does; this is for the last bits of a difference that is the limit itself.
_ROUNDING = 1e-9


def parse_limit(text: str) -> float:
    """Return the percentage that ``10%`` or ``10 %`` means; raises ``AltgradError`` unless it is 0 or more and has its sign."""
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e-?\d+)?\s*%", text.strip(), re.IGNORECASE):
        raise AltgradError(
            f"--assert-within takes a percentage with its sign, such as 1% or 0.5%, got '{text}'. "
            "1% allows a loss of 2.02 where the baseline's is 2.00."
        )
    return float(text.strip().rstrip("%"))


def beyond(comparison: Comparison, limit_percent: float) -> list[str]:
    """Return a sentence for each run that is not within ``limit_percent`` of the baseline's loss, above or below.

    A run that is not done, whose last loss is not finite, or that does not end at the step of the baseline's end, is not
    within. The baseline's own runs with other seeds are not
    asked. Raises ``AltgradError`` when there is nothing to compare, since that must not pass for a yes.
    """
    base = comparison.baseline
    if base is None:
        raise AltgradError(
            "--assert-within compares with a baseline, and none of the runs is one. Name it with --baseline RUN."
        )
    family = {name for group in comparison.groups if group.baseline for name in group.runs} | {base.name}
    others = [row for row in comparison.rows if row.name not in family]
    if not others:
        raise AltgradError(
            f"--assert-within compares runs with the baseline, and {base.name} is all there is. Name more."
        )
    rows = {row.name: row for row in comparison.rows}
    found = [(row, _why_not(row, rows[row.compared_with or base.name], limit_percent)) for row in others]
    return [f"{row.name} is not within {limit_percent:g} %: {why}." for row, why in found if why]


def _why_not(row: Row, base: Row, limit_percent: float) -> str:
    for one in (row, base):
        if one.status != "done":
            at = "before its first step" if one.steps is None else f"at step {one.steps} of {one.planned_steps}"
            return f"{one.name} is {one.status}, {at}"
    if row.final_loss is not None and not math.isfinite(row.final_loss):
        return f"its {row.loss_kind} loss at its end, step {row.final_step}, is {number(row.final_loss, 4)}"
    if row.compared_step is None:
        return f"it has no loss at a step at which {base.name} has one of the same kind"
    if not row.compared_at_end:
        return f"it ends at step {row.final_step} and {base.name} at step {base.final_step}, so their ends cannot be compared"
    losses = (
        f"{row.loss_kind} loss {number(row.compared_loss, 4)} against {number(row.baseline_loss, 4)} of {base.name} "
        f"at step {row.compared_step}"
    )
    if row.difference_percent is None:
        return f"{losses}, which cannot be compared"
    if abs(row.difference_percent) <= limit_percent + _ROUNDING:
        return ""
    return f"{losses}, {row.difference_percent:+.2f} %"
