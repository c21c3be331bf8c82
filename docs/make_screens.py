"""Draws the screens of docs/console.md into docs/screens: what the console shows, recorded, not painted.

    python docs/make_screens.py

A small matrix is really trained (a minute or so), the large trainings are simulated from a fixed seed, and the resized
terminal is a real one (tmux), photographed before and after.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.color import ColorSystem
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import altgrad_core as altgrad
from altgrad_core.console.canvas import Line, Look
from altgrad_core.console.follow import config_of, recorded
from altgrad_core.console.frame import frame
from altgrad_core.console.health import diagnose
from altgrad_core.console.screen import PlainScreen
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.simulation.stream import Simulation, simulate

SCREENS = Path(__file__).parent / "screens"
MATRIX = """
[experiment]
name = "three-formats"
[defaults]
launcher = "inline"
[defaults.model]
n_layer = 2
n_embd = 64
n_head = 2
block_size = 64
[defaults.train]
steps = 60
batch_size = 8
warmup_steps = 5
eval_every = 20
eval_batches = 2
[[run]]
name = "bf16"
baseline = true
[[run]]
name = "e5m2"
recipe = "e5m2"
[[run]]
name = "mxfp4"
recipe = "mxfp4"
"""


class Recorder(PlainScreen):
    """A screen of so many columns whose lines are kept."""

    def __init__(self, columns: int = 200, **options) -> None:
        super().__init__(Console(file=io.StringIO(), width=columns), **options)
        self.lines: list[Line] = []

    def _width(self) -> int:
        return self.console.width - 1

    def _put(self, line: Line) -> None:
        self.lines.append(line)


class LiveRecorder(Recorder):
    """The same for what scrolls above a frame, which says itself how the training goes."""

    def _training(self, run, state, event) -> None:
        pass


def save(name: str, lines: list[Line], width: int, *, title: str, colour: bool = True) -> None:
    """Save lines as a picture."""
    look = Look(color=ColorSystem.EIGHT_BIT if colour else None)
    save_text(name, "\n".join(line.drawn(look) for line in lines), width, title=title)


def save_text(name: str, text: str, width: int, *, title: str) -> None:
    """Save text with its control codes as a picture."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="256")
    console.print(Text.from_ansi(text), no_wrap=True, crop=True, overflow="crop")
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # nothing is fetched from elsewhere
    (SCREENS / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def whole(screen: PlainScreen, columns: int, rows: int) -> list[Line]:
    """The terminal: as many log lines as fit above the frame."""
    drawn = frame(screen.state, columns - 1, rows - max(3, rows // 5), screen.state.latest)
    above = [line.within(columns - 1) for line in screen.lines]
    return [*above[max(0, len(above) - (rows - len(drawn))) :], *drawn]


def simulated(until, columns: int, *, kind=LiveRecorder, **options) -> Recorder:
    """Simulate until ``until`` says so of the state and the event that changed it."""
    simulation = Simulation(**{"faults": "many", **options})
    screen = kind(columns, title=f"{simulation.model} on {simulation.gpus} GPUs")
    screen.now = lambda: screen.state.latest
    name = "simulated"
    state = screen.add(name, steps=simulation.steps)
    for event in simulate(simulation, time.mktime((2026, 1, 1, 9, 0, 0, 0, 0, -1))):
        screen.event(name, event)
        if until(state, event):
            break
    return screen


def sick(state, event) -> bool:
    """Tell whether a straggler and a throttled GPU are to be seen."""
    marks = {health.mark for health in diagnose(state.gpus, state.samples).values()}
    return event["event"] == "gpus" and state.step > 200 and "T" in marks and "S" in marks


def simulations() -> None:
    """Draw what needs GPUs."""
    start = simulated(lambda state, event: state.step == 1, 140, steps=600)
    save("initialization", start.lines, 140, title="altgrad simulate: initialization")
    loading = simulated(lambda state, event: event.get("done", 0) > 6e9, 80, steps=600)
    save("loading-80x24", whole(loading, 80, 24), 80, title="building weights, 80 x 24")
    for gpus, columns, rows in ((8, 100, 30), (64, 80, 24), (64, 160, 50), (256, 80, 24), (256, 200, 60)):
        screen = simulated(sick, columns, gpus=gpus, nodes=-(-gpus // 8), seed=1)
        save(
            f"gpus-{gpus}-{columns}x{rows}",
            whole(screen, columns, rows),
            columns,
            title=f"{gpus} GPUs, {columns} x {rows}",
        )
        if (gpus, columns) == (64, 80):
            save("no-colour-80x24", whole(screen, columns, rows), columns, title="NO_COLOR, 80 x 24", colour=False)
    plain = simulated(lambda state, event: False, 150, kind=Recorder, gpus=8, nodes=1, steps=60)
    plain.close()
    save("plain", plain.lines, 150, title="altgrad simulate | cat", colour=False)


def training() -> None:
    """Draw a real training: three formats of a tiny GPT."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "e.toml").write_text(MATRIX)
        altgrad.run(Path(folder) / "e.toml", runs=folder)
        experiment = Path(folder) / "three-formats"
        folders = [RunFolder(experiment / name) for name in ("bf16", "e5m2", "mxfp4")]
        events = list(recorded(folders))
        for name, runs, columns, rows in (
            ("matrix-120x30", 3, 120, 30),
            ("training-80x24", 1, 80, 24),
            ("matrix-200x60", 3, 200, 60),
        ):
            screen = LiveRecorder(columns, title="three-formats")
            screen.now = lambda screen=screen: screen.state.latest
            for run in folders if runs > 1 else folders[1:2]:
                screen.add(**config_of(run.path))
            for run, event in events:
                if run in screen.state.runs:
                    screen.event(run, event)
                    state = screen.state.runs[run]
                    if run == ("mxfp4" if runs > 1 else "e5m2") and state.step == 43 and event["event"] == "metrics":
                        break
            save(name, whole(screen, columns, rows), columns, title=name.replace("-", ", "))


def resized() -> None:
    """A real terminal, made wider while the simulation runs."""
    with tempfile.TemporaryDirectory() as folder:
        tmux = ["tmux", "-S", f"{folder}/tmux", "-f", "/dev/null", "-u"]
        command = f"{sys.executable} -m altgrad_core.cli simulate --gpus 8 --speed 200 --steps 4000 --runs {folder}"
        subprocess.run([*tmux, "new-session", "-d", "-x", "70", "-y", "24", f"cd {folder}; {command}"], check=True)
        try:
            time.sleep(8)
            before = subprocess.run(
                [*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True
            ).stdout
            subprocess.run([*tmux, "resize-window", "-x", "110", "-y", "28"], check=True)
            time.sleep(2)
            after = subprocess.run(
                [*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True
            ).stdout
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)
    save_text("resize-before", before.rstrip("\n"), 70, title="tmux, 70 x 24")
    save_text("resize-after", after.rstrip("\n"), 110, title="the same, made 110 x 28")


def main() -> None:
    """Draw everything."""
    SCREENS.mkdir(exist_ok=True)
    simulations()
    training()
    resized()


if __name__ == "__main__":
    main()
