"""The screen of ``run``, ``watch`` and ``simulate``: live on a terminal, sparse plain lines elsewhere.

It only reads events; training does not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from altgrad_core.console.canvas import LEVELS, Line, wrap
from altgrad_core.console.frame import frame, validation_text
from altgrad_core.console.health import MARKS, diagnose
from altgrad_core.console.state import RunState, ScreenState
from altgrad_core.console.summary import summary
from altgrad_core.console.terminal import UNBOUND, LiveArea, is_live, look_of
from altgrad_core.console.words import beyond, clock, event_line, init_lines, perplexity
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import events_of, fed_sinks
from altgrad_core.training.events import Event

if TYPE_CHECKING:
    from altgrad_core.experiments.runner import PlannedRun  # imports torch, which watch and simulate do without
    from altgrad_core.experiments.schema import Status

_PLAIN_EVERY_S = 30.0
_FRAME_S = 0.25
_COST = 0.005  # of the time, at most, is spent on drawing: large frames come less often
_BOX = 110  # of the box there
_INDENT = 2  # of what continues a line
_SAMPLES = 3  # in a row, before a straggler or a recovery is told


class PlainScreen:
    """One line an event, and one line of progress every tenth of a run or 30 seconds; no control codes.

    ``now`` gives the Unix time that the events live in, for elapsed times: that of the events in a replay.
    """

    def __init__(self, console: Console, *, title: str = "", now: Callable[[], float] = time.time) -> None:
        self.console, self.look = console, look_of(console)
        self.state = ScreenState(title=title)
        self.folders: dict[str, RunFolder] = {}
        self.now = now
        self._printed: dict[str, tuple[int, float]] = {}
        self._introduced: set[str] = set()
        # (run, rank) -> the mark that was told, the one of the last sample, and how often in a row it came
        self._sick: dict[tuple[str, int], tuple[str, str, int]] = {}
        self._closed = False
        self.log_ends: dict[str, str] = {}
        """What the workers of this call that did not finish printed last, by run."""
        self.trains = True
        """Whether there is anything to train; ``begin`` may find that there is not."""

    # What ``experiments.runner`` tells.

    def say(self, message: str) -> None:
        """Print a line that belongs to no run."""
        self._line("", "info", message)

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """Take in the runs, with what finished and interrupted ones have told already, and say what will be done."""
        for planned in plan:
            config = planned.config
            self.state.title = self.state.title or config.experiment
            state = self.add(config.name, planned.folder, steps=config.train.steps, baseline=config.baseline)
            if state.latest and not state.over:
                state.stop("interrupted", "its process ended without a word")
        self.trains = any(planned.action != "skip" for planned in plan)
        finished = [planned for planned in plan if planned.action == "skip" and planned.reason != "failed"]
        if len(finished) > 1:
            *names, last = [planned.config.name for planned in finished]
            self._line("", "info", f"{', '.join(names)} and {last} are finished already")
        for planned in plan:
            if planned not in finished or len(finished) == 1:
                self._line(planned.config.name, *_intention(planned))

    def start(self, run: PlannedRun) -> None:
        """Say in the frame that the run is starting: its process is alive, and imports for a while."""
        if run.action != "feed":
            self.state.runs[run.config.name].expect()

    def end(self, run: PlannedRun, status: Status, log_end: str, killed_by: str) -> None:
        """Say what no event could, and show the end of the log of a run that did not finish."""
        name, state = run.config.name, self.state.runs[run.config.name]
        self.log_ends[name] = log_end
        if run.action == "feed" and (fed := fed_sinks(run.folder.events)):
            self._line(name, "info", f"complete sinks: {', '.join(sorted(fed))}")
        if not state.over:
            state.stop(status, f"its process ended without a word{f', by {killed_by}' if killed_by else ''}")
            self._line(name, "error", f"{status}: {state.reason}")
        lines = beyond(log_end, state.reason)
        if lines:
            self._line(name, "error", f"the end of {run.folder.log}:")
        for line in lines:
            self._line(name, "error", f"  {line}")

    # What everybody tells.

    def add(self, name: str, folder: RunFolder | None = None, *, steps: int = 0, baseline: bool = False) -> RunState:
        """Take in a run and, from its folder, what it has told so far."""
        state = self.state.runs[name] = RunState(name, steps=steps, baseline=baseline)
        if folder is not None:
            self.folders[name] = folder
            for event in events_of(folder.events):
                state.take(event)
        return state

    def event(self, run: str, event: Event) -> None:
        """Tell an event."""
        state = self.state.runs[run]
        logged = state.logged
        state.take(event)
        if event["event"] == "init":
            for text in self._introduce(event):
                self._line(run, "info", text, event)
        line = event_line(event)
        if line is not None:
            self._line(run, *line, event)
        if event["event"] == "gpus":
            self._gpu_findings(state, event)
        if event["event"] == "evaluation" and event["state"] == "end" and state.validation is not None:
            text = validation_text(state, UNBOUND, step=False)
            self._line(run, "info", f"step {state.validation.step}: validation {text}", event)
        if event["event"] == "metrics" and state.logged > logged:
            self._training(run, state, event)

    def tell(self, run: str, level: str, text: str) -> None:
        """Print a line about a run."""
        self._line(run, level, text)

    def introduce(self, state: RunState) -> None:
        """Say what a run said about itself before it was watched, and how far it is."""
        for what, facts in state.facts.items():
            for text in self._introduce({"event": "init", "what": what, "facts": facts}):
                self._line(state.name, "info", text)
        if state.latest:
            reason = f" ({state.reason})" if state.reason else ""
            self._line(state.name, "info", f"is {state.status}{reason} at step {state.step:,} of {state.steps:,}")

    def idle(self) -> None:
        """Nothing to refresh."""

    def close(self, *, table_follows: bool = False) -> None:
        """Say how everything ended, without what a table says that follows; may be called again."""
        if not self._closed:
            self._closed = True
            width = self.console.width - 1 if self.console.is_terminal else _BOX
            lines = summary(self.state, self.folders, width, self.now(), table_follows=table_follows)
            self._finish([] if table_follows and not self.trains else lines)

    def _finish(self, lines: list[Line]) -> None:
        for line in lines:
            self._put(line)

    def _introduce(self, event: Event) -> list[str]:
        """Return the lines of an ``init`` event, each said once: the runs of an experiment share most of them."""
        lines = [line for line in init_lines(event) if line not in self._introduced]
        self._introduced.update(lines)
        return lines

    def _gpu_findings(self, state: RunState, event: Event) -> None:
        """Tell when a GPU becomes sick in another way than before, and when it is well again.

        Trouble is told at once; that a GPU lags, or is well, only when several samples in a row say so.
        """
        for rank, health in diagnose(state.gpus, state.samples).items():
            key = (state.name, rank)
            told, seen, times = self._sick.get(key, ("·", "·", 0))
            if health.mark == told == seen:
                continue
            times = times + 1 if health.mark == seen else 1
            if health.mark != told and (health.severity > 1 or times >= _SAMPLES):
                told = health.mark
                where = f"[rank {rank}] GPU on {state.gpus[rank].node}"
                if health.severity:
                    level = "error" if health.severity > 1 else "warning"
                    self._line(state.name, level, f"{where} {MARKS[health.mark]}: {health.text}", event)
                else:
                    self._line(state.name, "info", f"{where} is well again", event)
            self._sick[key] = (told, health.mark, times)

    def _training(self, run: str, state: RunState, event: Event) -> None:
        last_step, last_time = self._printed.get(run, (0, 0.0))
        now = time.monotonic()
        tenth = max(1, state.steps // 10)
        if state.step == 1 or state.step // tenth > last_step // tenth or now - last_time > _PLAIN_EVERY_S:
            self._printed[run] = (state.step, now)
            values, width = state.values, len(str(state.steps))
            text = f"step {state.step:{width}}/{state.steps}  train loss {values['train/loss']:7.4f}  "
            text += f"ppl {perplexity(values['train/perplexity']):>8}  lr {values['train/lr']:.2e}  "
            text += f"{values['train/tokens_per_s']:>8,.0f} tok/s"
            against = self.state.against_baseline(state)
            if against is not None:
                text += f"  {against[1]:+.2f} % to baseline"
            self._line(
                run, "info", f"{text}  elapsed {clock(state.elapsed_s(self.now()))}  eta {clock(state.eta_s)}", event
            )

    def _line(self, run: str, level: str, text: str, event: Event | None = None) -> None:
        mark = "" if level == "info" else f"{level.upper()}: "
        who = f"{run}  " if run and len(self.state.runs) > 1 else ""
        if run and self.state.runs[run].simulated:
            who = f"SIMULATED  {who}"
        stamp = time.strftime("%H:%M:%S", time.localtime(event["time"] if event and "time" in event else self.now()))
        head, indent, width = Line(f"{stamp}  {who}"), len(stamp) + 2, self._width()
        first, *more = f"{mark}{text}".splitlines() or [""]
        begun, *rest = wrap(first, width - head.width, width - indent - _INDENT)
        self._put(head.add(begun, LEVELS[level]))
        lines = [" " * _INDENT + line for line in rest]
        lines += [line for given in more for line in wrap(given, width - indent, width - indent)]
        for line in lines:
            self._put(Line(" " * indent).add(line, LEVELS[level]))

    def _width(self) -> int:
        """Return how many cells a line may have."""
        return self.console.width if self.console.is_terminal else UNBOUND

    def _put(self, line: Line) -> None:
        self.console.file.write(line.drawn(self.look) + "\n")
        self.console.file.flush()


class LiveScreen(PlainScreen):
    """A frame that is drawn over in place, with the same lines scrolling above it."""

    def __init__(self, console: Console, **options: Any) -> None:
        super().__init__(console, **options)
        self.area = LiveArea(console.file, self.look)  # type: ignore[arg-type]
        self._above: list[Line] = []
        self._next = 0.0

    def say(self, message: str) -> None:
        """Print a line at once: what it speaks of may take a while."""
        super().say(message)
        self.draw()

    def idle(self) -> None:
        """Draw, at most four times a second, and so seldom that it takes less than half a percent of the time."""
        now = time.monotonic()
        if now >= self._next:
            self.draw()
            cost = time.monotonic() - now
            self._next = now + max(_FRAME_S, cost / _COST)

    def draw(self) -> None:
        """Draw now: the lines that are waiting and the frame."""
        columns, rows = self.area.size()
        room = rows - max(3, rows // 5)  # log lines stay in sight above
        above, self._above = self._above, []
        self.area.draw(frame(self.state, columns - 1, room, self.now()), above)

    def close(self, *, table_follows: bool = False) -> None:
        """The same; the cursor is there again even if it cannot be said how everything ended."""
        try:
            super().close(table_follows=table_follows)
        finally:
            self.area.close()

    def _finish(self, lines: list[Line]) -> None:
        above, self._above = self._above, []
        self.area.close([*above, *lines])

    def _width(self) -> int:
        return self.area.size()[0] - 1

    def _put(self, line: Line) -> None:
        if self._closed:
            super()._put(line)
        else:
            self._above.append(line)

    def _training(self, run: str, state: RunState, event: Event) -> None:
        """The frame says it."""


def make_screen(console: Console, **options: Any) -> PlainScreen:
    """Return the live screen for a terminal, plain lines for everything else."""
    return LiveScreen(console, **options) if is_live(console) else PlainScreen(console, **options)


def _intention(planned: PlannedRun) -> tuple[str, str]:
    match planned.action, planned.reason:
        case "resume", "failed":
            return "info", "failed earlier and is resumed"
        case "skip", "failed":
            return "warning", "failed earlier and is not tried again; --retry-failed does"
        case "skip", reason:
            return "info", f"is {reason} already"
        case "feed", reason:
            return "info", f"is {reason}; what its sinks have not got, they get now"
        case "resume", reason:
            return "info", f"was {reason} and is resumed"
    config = planned.config
    steps, first = config.train.steps, 0 if config.fork is None else config.fork.step
    which = f", {first + 1:,} to {steps:,}" if first else ""
    return "info", f"trains {steps - first:,} steps{which}, recipe {config.recipe.name}"
