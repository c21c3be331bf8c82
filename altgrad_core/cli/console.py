"""The console of ``altgrad run``: a live screen on a terminal, sparse plain lines elsewhere.

It only reads events; training does not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from altgrad_core.cli.progress import RunProgress, clock, event_line, init_lines
from altgrad_core.experiments.runner import PlannedRun
from altgrad_core.experiments.schema import Status
from altgrad_core.training.events import Event

_LEVEL_STYLE = {"info": "", "warning": "yellow", "error": "bold red"}
_PLAIN_EVERY_S = 30.0
_WIDE = 110  # columns from which a bar has room for all its numbers


class PlainConsole:
    """One line an event, and one line of progress every tenth of a run or 30 seconds; no control codes."""

    def __init__(self, console: RichConsole) -> None:
        self.console = console
        self.progress: dict[str, RunProgress] = {}
        self._printed: dict[str, tuple[int, float]] = {}
        self._introduced: set[str] = set()

    def say(self, message: str) -> None:
        """Print a line that belongs to no run."""
        self._line("", "info", message)

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """Say what will be done."""
        for planned in plan:
            self._line(planned.config.name, *_intention(planned))

    def event(self, run: str, event: Event) -> None:
        """Tell an event."""
        progress = self.progress.setdefault(run, RunProgress(run))
        progress.take(event)
        if event["event"] == "init":
            for text in self._introduce(event):
                self._line(run, "info", text)
        line = event_line(event)
        if line is not None:
            self._line(run, *line)
        if event["event"] == "metrics" and "train/loss" in event["values"]:
            self._training(run, progress)

    def end(self, run: PlannedRun, status: Status, log_end: str) -> None:
        """Show the end of a failed run's log."""
        if log_end:
            self._line(run.config.name, "error", f"{status}; the end of {run.folder.log}:")
            for line in log_end.splitlines():
                self._line(run.config.name, "error", f"  {line}")

    def idle(self) -> None:
        """Nothing to refresh."""

    def close(self) -> None:
        """Nothing to put back."""

    def _introduce(self, event: Event) -> list[str]:
        """Return the lines of an ``init`` event, each said once: the runs of an experiment share most of them."""
        lines = [line for line in init_lines(event) if line not in self._introduced]
        self._introduced.update(lines)
        return lines

    def _training(self, run: str, progress: RunProgress) -> None:
        last_step, last_time = self._printed.get(run, (0, 0.0))
        now = time.monotonic()
        tenth = max(1, progress.steps // 10)
        if progress.step == 1 or progress.step // tenth > last_step // tenth or now - last_time > _PLAIN_EVERY_S:
            self._printed[run] = (progress.step, now)
            width = len(str(progress.steps))
            text = f"step {progress.step:{width}}/{progress.steps}  {progress.numbers()}"
            self._line(run, "info", f"{text}  elapsed {clock(progress.elapsed_s)}  eta {clock(progress.eta_s)}")

    def _line(self, run: str, level: str, text: str) -> None:
        mark = "" if level == "info" else f"{level.upper()}: "
        who = f"{run}  " if run else ""
        line = Text(f"{time.strftime('%H:%M:%S')}  {who}{mark}{text}", style=_LEVEL_STYLE[level])
        self.console.print(line, soft_wrap=not self.console.is_terminal, highlight=False)


class LiveConsole(PlainConsole):
    """Bars that move, with the same lines scrolling above them."""

    def __init__(self, console: RichConsole) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8 if console.width < _WIDE else 24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Numbers(self.progress, console),
            console=console,
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._refreshed = 0.0

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """Say what will be done and show the bars."""
        super().begin(plan)
        self._bars.start()

    def event(self, run: str, event: Event) -> None:
        """Tell an event and move the run's bar."""
        super().event(run, event)
        progress = self.progress[run]
        if run not in self._tasks and progress.steps:
            self._tasks[run] = self._bars.add_task(run, total=progress.steps)
        if run in self._tasks:
            self._bars.update(self._tasks[run], completed=progress.step)

    def end(self, run: PlannedRun, status: Status, log_end: str) -> None:
        """Show the end of a failed run's log."""
        super().end(run, status, log_end)
        self._bars.refresh()

    def idle(self) -> None:
        """Refresh at most four times a second."""
        now = time.monotonic()
        if now - self._refreshed >= 0.25:
            self._refreshed = now
            self._bars.refresh()

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()

    def _training(self, run: str, progress: RunProgress) -> None:
        """The bar says it."""


class _Numbers(ProgressColumn):
    def __init__(self, progress: dict[str, RunProgress], console: RichConsole) -> None:
        super().__init__(Column(no_wrap=True))
        self._progress, self._console = progress, console

    def render(self, task: Task) -> Text:
        """Show loss, speed and times of the run behind a bar; what it does when it is not training."""
        run = self._progress[task.description]
        activity = "" if run.activity == "running" else f"  {run.activity}"
        times = f"{clock(run.elapsed_s)} eta {clock(run.eta_s if run.step < run.steps else 0)}"
        return Text(f"{run.numbers(short=self._console.width < _WIDE)}  {times}{activity}")


def make_console(console: RichConsole) -> PlainConsole:
    """Return the live screen for a terminal, plain lines for everything else."""
    return LiveConsole(console) if console.is_terminal else PlainConsole(console)


def _intention(planned: PlannedRun) -> tuple[str, str]:
    match planned.action, planned.reason:
        case "skip", "failed":
            return "warning", "failed earlier and is not tried again; --retry-failed does"
        case "skip", reason:
            return "info", f"is {reason} already"
        case "resume", reason:
            return "info", f"was {reason} and is resumed"
    return "info", f"trains {planned.config.train.steps:,} steps, recipe {planned.config.recipe.name}"
