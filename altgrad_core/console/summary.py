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


def summary(
    state: ScreenState, folders: Mapping[str, RunFolder], width: int, now: float, *, table_follows: bool = False
) -> list[Line]:
    """Return the box of all runs, once one was heard of: in full for a single one, a row each for several.

    With ``table_follows`` the rows leave out what that table says beside the losses: states, steps and times.
    """
    runs = list(state.runs.values())
    if not any(run.latest for run in runs):
        return []
    title = f"{'SIMULATED, nothing was trained' if state.simulated else 'summary'}: {state.title}"
    if len(runs) == 1:
        rows = _in_full(runs[0], width, now)
        models = [_row("model").add(_model(runs[0], folders.get(runs[0].name)))]
    else:
        names = max(len(run.name) for run in runs)
        rows = [_in_brief(run, names, now, table_follows=table_follows) for run in runs]
        models = [
            Line().field(run.name, names).add(f"  {_model(run, folders.get(run.name))}") for run in runs if run.latest
        ]
    # A path that does not fit is not cut: somebody may want to copy it.
    if any(model.width > width - 4 for model in models):
        return [*box(title, rows, width), *models]
    return box(title, [*rows, *models], width)


def _in_brief(run: RunState, names: int, now: float, *, table_follows: bool) -> Line:
    row = Line().field(run.name, names)
    if not run.latest:
        return row.add("  not started")
    if not table_follows:
        row.add("  ").field(run.status, 11, _STATUS.get(run.status, PLAIN))
        row.add(f"  {run.step:,} steps  {clock(run.elapsed_s(now))}")
    if "train/loss" in run.values:
        row.add(f"  train loss {run.values['train/loss']:.4f}")
    if run.validation is not None:
        row.add(f"  val loss {run.validation.loss:.4f}")
    if run.peak_mib and table_follows:
        row.add(f"  peak memory {gib(run.peak_mib)} GiB")
    return row


def _in_full(run: RunState, width: int, now: float) -> list[Line]:
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
        rows.append(_row("validation").add(validation_text(run, width - 4 - _LABEL)))
    if run.gpus:
        utilization = "N/A" if run.mean_utilization is None else f"{run.mean_utilization:.0f} %"
        rows.append(_row("GPUs").add(f"{len(run.gpus)}, mean utilization {utilization}"))
    if run.peak_mib:
        what = "of one GPU" if run.gpus else "of the training process"
        rows.append(_row("peak memory").add(f"{gib(run.peak_mib)} GiB {what}"))
    if run.alerts:
        rows.append(_row("alerts").add(str(run.alerts), WARN))
    return rows


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
