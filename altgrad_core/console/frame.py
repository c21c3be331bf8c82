"""The live frame: everything a screen shows below its log lines, in exactly the room there is.

Every part proposes rows with a priority; when they do not fit, the least important ones are left out, and the GPU grid
takes the rows that remain. Fields have fixed widths, so that nothing jumps from frame to frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from rich.cells import cell_len
from rich.style import Style

from altgrad_core.console.canvas import BAD, DIM, GOOD, PLAIN, STRONG, WARN, Line, bar, rule, sparkline
from altgrad_core.console.grid import Grid
from altgrad_core.console.runs_table import runs_table
from altgrad_core.console.state import RunState, ScreenState, Task
from altgrad_core.console.words import clock, count, percent, perplexity, signed_percent, size

_LABEL = 7
_WIDE = 100
_LONGEST_BAR = 60
_LEAST = 6  # rows that many GPUs leave to the training

# metric -> (what it is called, in short, its alert)
HEALTH = {
    "overflow_rate": ("overflow", "over", "overflow"),
    "underflow_rate": ("underflow", "under", "underflow"),
    "bit_stall_rate": ("bit stall", "stall", "bit_stall"),
    "grad_cos_sim": ("cosine", "cos", None),
}


@attrs.frozen
class Row:
    """A line and how much it matters: 0 is always there, larger numbers go first."""

    line: Line
    priority: int


def frame(state: ScreenState, width: int, height: int, now: float) -> list[Line]:
    """Return at most ``height`` lines of at most ``width`` cells. ``now`` is Unix time."""
    rows = [Row(rule(state.title, "SIMULATED" if state.simulated else "", width), 0)]
    current = state.current()
    shown = current[0] if current else None
    if len(state.runs) > 1:
        room = max(3, height - 1 - (6 if shown else 0))
        rows += [Row(line, 1) for line in runs_table(state, width, room, now)]
    drawn: list[Line] = []
    if shown is not None:
        rows += run_rows(state, shown, width, now, alone=len(state.runs) == 1)
        if shown.gpus:
            grid = Grid(shown)
            rows = fitting(rows, max(_LEAST, height - grid.least_rows(width)))
            room = height - len(rows)
            drawn = grid.draw(width, room) if room > 0 else []
    return [row.line.within(width) for row in fitting(rows, height)] + drawn


def fitting(rows: Sequence[Row], height: int) -> list[Row]:
    """Return the most important rows that fit, in their order; of equal ones the upper."""
    kept = sorted(range(len(rows)), key=lambda index: (rows[index].priority, index))[: max(0, height)]
    return [rows[index] for index in sorted(kept)]


def run_rows(state: ScreenState, run: RunState, width: int, now: float, *, alone: bool) -> list[Row]:
    """Return the rows about one run."""
    rows = [*_progress(run, width, now, alone=alone), Row(_numbers(run, width), 1)]
    rows += [Row(_task(task, width, now), 2) for task in run.tasks.values()]
    if len(run.losses) > 1:
        rows.append(Row(_curve(run, width), 6))
    if (baseline := _baseline(state, run)) is not None:
        rows.append(Row(baseline, 3))
    if (health := health_line(run, width)) is not None:
        rows.append(Row(health, 3))
    if run.validation is not None:
        rows.append(Row(_labelled("valid").add(validation_text(run, width - _LABEL)), 4))
    if run.checkpoint is not None:
        event = run.checkpoint
        text = f"{event['path']} ({event['kind']}), {size(event['bytes'])} in {event['seconds']:.2f} s"
        rows.append(Row(_labelled("loaded" if event["kind"] == "resumed" else "saved").add(text, DIM), 8))
    if run.communication is not None:
        event = run.communication
        text = f"{event['op']} of {size(event['bytes'])} over {event['ranks']} ranks: {event['milliseconds']:.2f} ms"
        rows.append(Row(_labelled("comm").add(text, DIM), 9))
    if run.alert is not None:
        text = f"! {run.alerts}, last at step {run.alert['step']}: {run.alert['message']}"
        rows.append(Row(_labelled("alerts").add(text, BAD if run.alert["action"] == "stop" else WARN), 3))
    if run.host is not None and not run.gpus:
        rows.append(Row(_host(run, width), 5))
    return rows


def validation_text(run: RunState, width: int, *, step: bool = True) -> str:
    """Return the last evaluation in words, as many of them as fit; the run must have one."""
    valid = run.validation
    assert valid is not None
    parts = [f"loss {valid.loss:.4f}", f"ppl {perplexity(valid.perplexity)}"]
    if step:
        parts.append(f"step {valid.step}")
    if math.isfinite(valid.best_loss):
        here = valid.best_step == valid.step
        parts.append("best so far" if here else f"best {valid.best_loss:.4f} at {valid.best_step}")
    if valid.above_training is not None:
        side = "below" if valid.above_training < 0 else "above"
        parts.append(f"{abs(valid.above_training):.4f} {side} training loss")
    if valid.patience is not None:
        parts.append(f"patience {valid.patience_used}/{valid.patience}")
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) <= width:
            text += f"  {part}"
    return text


def health_line(run: RunState, width: int) -> Line | None:
    """Return how the format does, each value marked when it is past the run's alert threshold; None unmeasured.

    In short words where the width asks for them; where these are too long, too, the worst come first.
    """
    parts = _health(run, short=False)
    if _LABEL + sum(part.width + 2 for _, part in parts) - 2 > width:
        parts = _health(run, short=True)
    if _LABEL + sum(part.width + 2 for _, part in parts) - 2 > width:
        parts.sort(key=lambda part: (BAD, WARN).index(part[0]) if part[0] in (BAD, WARN) else 2)
    line = _labelled("health")
    for number, (_, part) in enumerate(parts):
        gap = "  " if number else ""
        if number and line.width + len(gap) + part.width > width:
            break
        line.add(gap).extend(part)
    return line if parts else None


def _health(run: RunState, *, short: bool) -> list[tuple[Style, Line]]:
    parts = []
    for metric, (long_name, short_name, alert) in HEALTH.items():
        if metric in run.values:
            value = run.values[metric]
            mark, style = judged(value, None if alert is None else run.threshold(alert))
            text = f"{value:.4f}" if alert is None else percent(value)
            if short:
                text = f"{value:.2f}" if alert is None else text.replace(" ", "")
            parts.append((style, Line(f"{short_name if short else long_name} ").add(f"{text}{mark}", style)))
    return parts


def judged(value: float, limit: float | None) -> tuple[str, Style]:
    """Return the mark and colour of a health value: red past its alert's limit or no number, yellow past half of that."""
    if not math.isfinite(value) or (limit is not None and value > limit):
        return " !", BAD
    if limit is None:
        return "", PLAIN
    return (" ~", WARN) if value > limit / 2 else ("", GOOD)


def _labelled(label: str) -> Line:
    return Line().field(label, _LABEL, DIM)


def _progress(run: RunState, width: int, now: float, *, alone: bool) -> list[Row]:
    """Return the rows of steps and, if it is known, epoch; their bars end at the same column."""
    name = "step" if alone else run.name
    line = Line().field(name, _LABEL if alone else max(_LABEL, min(20, width // 4, cell_len(name) + 2)), STRONG)
    fraction = run.step / run.steps if run.steps else 0
    tail = f" {100 * fraction:3.0f} %  {run.step:>{len(f'{run.steps:,}')},}/{run.steps:,}"
    tail += f"  {clock(run.elapsed_s(now))}" if width >= 50 else ""
    tail += f"  eta {clock(run.eta_s)}"
    status = "" if run.status == "running" else f"  {run.status}"
    end = width - len(tail) - max(len(status), 13 if width > 70 else 0)
    end = min(end, line.width + _LONGEST_BAR)
    _bar(line, fraction, end)
    style = {"failed": BAD, "pending": BAD, "stopped": WARN, "interrupted": WARN, "silent": WARN}.get(run.status, GOOD)
    rows = [Row(line.add(tail).add(status, style), 1)]
    if run.epochs and run.steps:
        rows.append(Row(_epoch(run.epochs, run.epochs * fraction, width, end), 5))
    return rows


def _epoch(epochs: float, done: float, width: int, end: int) -> Line:
    number = min(int(done), math.ceil(epochs) - 1)
    tail = f" {100 * (done - number):3.0f} %"
    if epochs > 1:
        tail += f"  {number + 1} of {epochs:.3g}"
    elif width >= 60:
        tail += f"  of the data, {percent(epochs)} at the end"
    line = _labelled("epoch")
    _bar(line, done - number, min(end, width - len(tail)))
    return line.add(tail)


def _bar(line: Line, fraction: float, end: int) -> None:
    """Append a bar that ends at the column ``end``, if it would be long enough to say something."""
    if end - line.width >= 4:
        line.extend(bar(fraction, end - line.width))


def _numbers(run: RunState, width: int) -> Line:
    values = run.values
    line = _labelled("train")
    if "train/loss" not in values:
        return line.add("-")
    line.add("loss ").add(f"{values['train/loss']:<8.4f}", STRONG)
    if width >= 50:
        line.add(f" ppl {perplexity(values['train/perplexity']):<8}")
    if width >= 64:
        line.add(f" lr {values['train/lr']:.2e} ")
    line.add(f" {values['train/tokens_per_s']:>9,.0f} tok/s")
    if width >= 80 and "train/grad_norm" in values:
        line.add(f"  grad norm {values['train/grad_norm']:.3g}")
    return line


def _task(task: Task, width: int, now: float) -> Line:
    line = Line().field(f" {task.name}", max(_LABEL, min(24, width // 3)))
    seconds = f"  {max(0.0, now - task.since):.0f} s"
    if not task.total:
        return line.add(f" {count(task.done)} {task.unit}" if task.done else " ...").add(seconds, DIM)
    fraction = task.done / task.total
    if task.unit == "bytes":
        done = f"{size(round(task.done))} of {size(round(task.total))}"
    else:
        number = count if task.total >= 100_000 else lambda value: f"{value:,.0f}"
        done = f"{number(task.done)}/{number(task.total)} {task.unit}".rstrip()
    tail = f" {100 * fraction:3.0f} %  {done}"
    bars = width - line.width - len(tail) - len(seconds)
    if bars >= 4:
        line.extend(bar(fraction, min(bars, 30)))
    return line.add(tail).add(seconds, DIM)


def _curve(run: RunState, width: int) -> Line:
    points = run.losses.curve(max(8, min(width - _LABEL - 22, 100)))
    finite = [point for point in points if math.isfinite(point)]
    line = _labelled("curve").add(sparkline(points))
    if finite and width >= 50:
        line.add(f"  {min(finite):.3f} to {max(finite):.3f}", DIM)
    return line


def _baseline(state: ScreenState, run: RunState) -> Line | None:
    base = state.baseline
    if base is None or base is run or run.loss_step is None:
        return None
    line = _labelled("base")
    found = state.against_baseline(run)
    if found is None:
        return line.add(f"{base.name} has no loss at step {run.loss_step}", DIM)
    loss, difference = found
    return line.add(f"{base.name} {loss:.4f} at step {run.loss_step}  ").add(
        f"{signed_percent(difference)} against it", STRONG
    )


def _host(run: RunState, width: int) -> Line:
    host = run.host
    assert host is not None
    line = _labelled("cpu")
    if width >= _WIDE:
        line.extend(bar(host.cpu_percent / 100, 12)).add(" ")
    gib = 2**30
    line.add(
        f"{host.cpu_percent:3.0f} % of {host.cores} cores  memory {host.used_bytes / gib:.1f}/{host.total_bytes / gib:.1f} GiB"
    )
    return line.add(f"  training {host.process_bytes / gib:.1f} GiB")
