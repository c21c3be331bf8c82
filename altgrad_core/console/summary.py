"""The last word: a box that says how every run ended and where its model is."""

from __future__ import annotations

from collections.abc import Mapping

from altgrad_core.console.canvas import BAD, GOOD, PLAIN, WARN, Line, box, wrap
from altgrad_core.console.frame import validation_text
from altgrad_core.console.state import RunState, ScreenState
from altgrad_core.console.words import clock, gib, perplexity
from altgrad_core.experiments.folder import RunFolder

_STATUS = {"done": GOOD, "failed": BAD, "pending": BAD, "stopped": WARN, "interrupted": WARN, "silent": WARN}
_LABEL = 13


def summary(state: ScreenState, folders: Mapping[str, RunFolder], width: int, now: float) -> list[Line]:
    """Return the boxes of all runs that were heard of: in full for a single one, a row each for several."""
    runs = [run for run in state.runs.values() if run.latest]
    if not runs:
        return []
    title = f"{'SIMULATED, nothing was trained' if state.simulated else 'summary'}: {state.title}"
    if len(runs) == 1:
        rows = _in_full(runs[0], folders.get(runs[0].name), width, now)
        # A path that does not fit is not cut: somebody may want to copy it.
        below = [row for row in rows[-1:] if row.width > width - 4]
        return [*box(title, rows[:-1] if below else rows, width), *below]
    names = max(len(run.name) for run in runs)
    rows = []
    for run in runs:
        row = Line().field(run.name, names).add("  ").field(run.status, 11, _STATUS.get(run.status, PLAIN))
        row.add(f"  {run.step:,} steps  {clock(run.elapsed_s(now))}")
        if "train/loss" in run.values:
            row.add(f"  loss {run.values['train/loss']:.4f}")
        if run.validation is not None:
            row.add(f"  validation {run.validation.loss:.4f}")
        rows.append(row.add(f"  {_model(run, folders.get(run.name))}"))
    return box(title, rows, width)


def _in_full(run: RunState, folder: RunFolder | None, width: int, now: float) -> list[Line]:
    # Why a run failed was told when it did, in a text that may be long.
    reason = f": {run.reason}" if run.reason and run.status != "failed" else ""
    rows = [
        *_wrapped(
            _row("run").add(f"{run.name} is ").add(run.status, _STATUS.get(run.status, PLAIN)), reason, width - 4
        ),
        _row("time").add(clock(run.elapsed_s(now))),
        _row("steps").add(f"{run.step:,} of {run.steps:,}"),
    ]
    if "train/loss" in run.values:
        text = f"loss {run.values['train/loss']:.4f}  perplexity {perplexity(run.values['train/perplexity'])}"
        rows.append(_row("training").add(text))
    if run.validation is not None:
        rows.append(_row("validation").add(validation_text(run, 200)))
    if run.gpus:
        utilization = "N/A" if run.mean_utilization is None else f"{run.mean_utilization:.0f} %"
        rows.append(_row("GPUs").add(f"{len(run.gpus)}, mean utilization {utilization}"))
    if run.peak_mib:
        what = "of one GPU" if run.gpus else "of the training process"
        rows.append(_row("peak memory").add(f"{gib(run.peak_mib)} GiB {what}"))
    if run.alerts:
        rows.append(_row("alerts").add(str(run.alerts), WARN))
    return [*rows, _row("model").add(_model(run, folder))]


def _wrapped(line: Line, text: str, width: int) -> list[Line]:
    """Return ``line`` with ``text`` after it, in as many lines as it takes."""
    first, *more = wrap(text, max(20, width - line.width), max(20, width - _LABEL))
    return [line.add(first), *(_row("").add(rest) for rest in more)]


def _row(label: str) -> Line:
    return Line().field(label, _LABEL)


def _model(run: RunState, folder: RunFolder | None) -> str:
    if run.checkpoint is None:
        return "no checkpoint"
    if run.simulated:
        return f"{run.checkpoint['path']} (not written: a simulation)"
    return str(run.checkpoint["path"] if folder is None else folder.path / run.checkpoint["path"])
