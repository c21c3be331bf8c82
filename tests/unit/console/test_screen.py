"""What a file gets: plain lines, few of them, without control codes."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import scenes
from rich.console import Console
from scenes import Teller
from test_frames import compare

from altgrad_core.console.canvas import wrap
from altgrad_core.console.screen import LiveScreen, PlainScreen, make_screen
from altgrad_core.console.state import RunState
from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.runner import PlannedRun, worker_ended


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def planned(folder: Path, name: str = "e5m2", *events: dict[str, Any], log: str = "") -> PlannedRun:
    """A run of an experiment file, with what its folder holds."""
    (folder / "e.toml").write_text(f'[experiment]\nname = "e"\n[[run]]\nname = "{name}"\nrecipe = "e5m2"\n')
    (config,) = load_experiment(folder / "e.toml").runs
    run = RunFolder(folder / name)
    run.path.mkdir()
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    run.log.write_text(log)
    return PlannedRun(config=config, folder=run, action="train", reason="new")


def ended(run: PlannedRun, exit_status: int) -> list[str]:
    """Return what a screen says that plans, starts and ends the run, without the times in front, the box last."""
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    screen.begin([run])
    screen.start(run)
    assert screen.state.runs["e5m2"].status == "starting"
    for line in run.folder.events.read_text().splitlines():
        screen.event("e5m2", json.loads(line))
    screen.end(run, *worker_ended(run.folder, exit_status, log_start=0))
    screen.close()
    return [line.removeprefix("22:13:20  ") for line in file.getvalue().splitlines()][1:]


RUNNING = {"time": scenes.START, "event": "status", "status": "running", "pid": 1, "step": 0, "resumed": False}


def test_killed_before_the_first_event(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert ended(run, -9) == ["ERROR: pending: its process ended without a word, by SIGKILL"]


def test_killed_before_the_first_step(tmp_path: Path) -> None:
    """The state has one name, and a log that says nothing is not quoted."""
    lines = ended(planned(tmp_path, "e5m2", RUNNING), -9)
    assert lines[1] == "ERROR: interrupted: its process ended without a word, by SIGKILL"
    assert "interrupted" in next(line for line in lines if line.startswith("│ run"))
    assert not any("lost" in line or "the end of" in line for line in lines)


def test_killed_when_all_was_done(tmp_path: Path) -> None:
    done = {"time": scenes.START, "event": "status", "status": "done", "step": 300, "reason": ""}
    lines = ended(planned(tmp_path, "e5m2", RUNNING, done, log="a warning of a library"), -9)
    assert "done" in lines
    assert not any("ERROR" in line or "SIGKILL" in line for line in lines)


@pytest.mark.parametrize(("log", "shown"), [("", []), ("Traceback\n  a line", ["Traceback", "  a line"])])
def test_a_failure_is_told_once(tmp_path: Path, log: str, shown: list[str]) -> None:
    reason = "OutOfMemoryError: out of memory\nAsk for less."
    failed = {"time": scenes.START, "event": "status", "status": "failed", "reason": reason}
    lines = ended(planned(tmp_path, "e5m2", RUNNING, failed, log=f"{log}\n{reason}\n"), 1)
    text = "\n".join(lines)
    assert text.count("out of memory") == 1
    assert [line.strip() for line in lines[1:3]] == ["ERROR: failed: OutOfMemoryError: out of memory", "Ask for less."]
    quoted = [line.removeprefix("ERROR:   ") for line in lines[4:] if line.startswith("ERROR:   ")]
    assert quoted == shown
    assert ("the end of" in text) == bool(shown)


def told(events: list[dict[str, Any]], *, names: tuple[str, ...] = ("e5m2",), title: str = "e5m2-vs-bf16") -> str:
    """Return what a plain screen makes of the events of the first run."""
    file = io.StringIO()
    screen = make_screen(Console(file=file), title=title, now=lambda: events[-1]["time"] + 1)
    assert type(screen) is PlainScreen
    for name in names:
        screen.add(name)
    for event in events:
        screen.event(names[0], event)
    screen.close()
    screen.close()
    text = file.getvalue()
    assert "\x1b" not in text
    return text


def test_a_whole_run() -> None:
    tell = Teller(RunState("e5m2"))
    tell("log", level="info", message="Reading text\nfrom two places\x1b[2J")
    tell.start(300, world=64)
    tell.gpus(64)
    tell.evaluate(0, 5.4)
    tell.train(1, 100)
    tell.evaluate(100, 2.31)
    saved = {
        "path": "checkpoints/step-000100",
        "bytes": 9_437_184,
        "seconds": 0.22,
        "blocked_s": 0.01,
        "name": "step-000100",
    }
    tell("checkpoint", step=100, kind="best", **saved, state_hash="c0ffee" * 10)
    tell("log", level="warning", message="a slow disk", rank=17)
    tell("comm", step=100, op="all_reduce", milliseconds=12.345, bytes=2**27, ranks=64)
    for _ in range(3):
        tell.sample(64)
    for _ in range(3):
        tell.sample(64, sick=False)
    nan = {"alert": "nan", "action": "stop", "value": "NaN", "threshold": 10.0}
    tell("alert", step=101, **nan, message="The loss is nan; this update is skipped (10 in a row, 10 stop the run).")
    tell("status", status="stopped", step=101, reason="non-finite loss or gradients")
    text = told(tell.events)
    compare("plain-run", text)
    assert text.count("[rank ") == 16 + 3 + 1 + 3  # detected, sick, the warning, well again
    assert "... and 48 more GPUs" in text


def test_a_matrix_introduces_itself_once() -> None:
    events = []
    for name in ("bf16", "e5m2"):
        tell = Teller(RunState(name))
        tell.start(300)
        events.append(tell.events)
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    for name, told_by_it in zip(("bf16", "e5m2"), events):
        screen.add(name)
        for event in told_by_it:
            screen.event(name, event)
    assert file.getvalue().count("tokenizer") == 1
    screen.close()
    assert "bf16  running" in file.getvalue()


def test_finished_runs_are_named_in_one_line(tmp_path: Path) -> None:
    plan = []
    for name in ("bf16", "e5m2", "mxfp4"):
        plan.append(attrs.evolve(planned(tmp_path, name), action="skip", reason="done"))
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    screen.begin(plan)
    screen.close(table_follows=True)
    assert file.getvalue() == "22:13:20  bf16, e5m2 and mxfp4 are finished already\n"


def test_a_failed_run_that_is_resumed(tmp_path: Path) -> None:
    run = attrs.evolve(planned(tmp_path), action="resume", reason="failed")
    assert ended(run, 0)[0] == "ERROR: pending: its process ended without a word"
    file = io.StringIO()
    PlainScreen(Console(file=file), now=lambda: scenes.START).begin([run])
    assert file.getvalue() == "22:13:20  failed earlier and is resumed\n"


def test_what_a_table_says_stands_nowhere_else() -> None:
    """The box of several runs; their models are never cut, since somebody may want to copy the path."""
    for follows in (False, True):
        file = io.StringIO()
        screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
        screen.state = scenes.matrix()
        path = "checkpoints/" + "a-long-name" * 10
        screen.state.runs["bf16"].checkpoint = {"path": path}
        screen.close(table_follows=follows)
        text = file.getvalue()
        assert f"bf16          {path}" in text.splitlines()
        assert "train loss 2.0300" in text
        assert "val loss 2.3300" in text
        assert ("failed" in text, "300 steps" in text) == (not follows,) * 2


def test_a_matrix_that_is_interrupted_names_all_its_runs() -> None:
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    screen.state = scenes.training()
    screen.state.runs["hybrid"] = RunState("hybrid", steps=300)
    screen.close()
    lines = [line.strip("│ ") for line in file.getvalue().splitlines()]
    assert "hybrid  not started" in lines
    assert any(line.startswith("e5m2    running") and "train loss" in line for line in lines)


def test_a_long_run_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Teller(RunState("e5m2"))
    tell.start(5000)
    before = len(told(tell.events).splitlines())
    tell.train(1, 5000)
    assert len(told(tell.events).splitlines()) - before == 11 + 1  # the first step, every tenth; "training" in the box


def test_half_a_minute_without_a_line_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10**6, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    tell = Teller(RunState("e5m2"))
    tell.start(5000)
    tell.train(1, 100)
    assert told(tell.events).count(" tok/s") == 50


def test_differences_from_the_baseline_stand_in_the_line() -> None:
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    screen.add("bf16", baseline=True)
    screen.add("e5m2")
    for name, above in (("bf16", 0.0), ("e5m2", 0.1)):
        tell = Teller(RunState(name))
        tell.start(10)
        tell.train(1, 1, above=above)
        for event in tell.events:
            screen.event(name, event)
    assert "+1.85 % to baseline" in file.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80])
def test_lines_are_broken_between_words(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    screen = PlainScreen(Console(file=file, width=width, height=25), now=lambda: scenes.START)
    screen.add("e5m2")
    path = "runs/an-experiment/a-run-with-a-long-name/checkpoints/step-000100"
    message = f"The update is skipped. Saved in {path} for you to look at, and more.\nA second line: {'word ' * 20}end"
    screen.tell("e5m2", "warning", message)
    text = file.getvalue()
    assert " ".join(text.split()) == f"22:13:20 WARNING: {' '.join(message.split())}"
    assert path in text, "a path can be copied"
    assert all(len(line) <= width or path in line for line in text.splitlines())
    first, second, *_ = text.splitlines()
    assert first.startswith("22:13:20  WARNING: The")
    assert second.startswith(" " * 12)


@pytest.mark.parametrize("width", range(24, 60))
def test_a_number_stays_with_its_unit(width: int) -> None:
    text = "all_reduce of 478.6 MiB over 8 ranks took 3.5 ms, at 96 % and 64 °C; 12 steps"
    lines = wrap(text, width, width)
    assert " ".join(lines) == text
    assert all(len(line) <= width for line in lines)
    for whole in ("478.6 MiB", "3.5 ms,", "96 %", "64 °C;"):
        assert any(whole in line for line in lines)


def test_the_box_in_a_file_stays_readable() -> None:
    tell = Teller(RunState("e5m2"))
    tell.start(300)
    tell("status", status="stopped", step=2, reason="The loss is nan, which it was in all of the last ten steps. " * 4)
    box = [line for line in told(tell.events).splitlines() if line[0] in "│╭╰"]
    assert 90 < max(len(line) for line in box) <= 110
    assert sum("The loss is nan" in line for line in box) >= 2


def test_live_only_on_a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert type(make_screen(Console(file=Terminal()))) is LiveScreen
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(make_screen(Console(file=io.StringIO()))) is PlainScreen
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_screen(Console(file=Terminal()))) is PlainScreen


@pytest.mark.parametrize(
    ("variables", "unicode"),
    [
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # what Python makes of LANG=C
        ({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, True),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({}, True),
    ],
)
def test_which_characters(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], unicode: bool) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert PlainScreen(Console(file=text)).look.unicode == unicode
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert not PlainScreen(Console(file=latin)).look.unicode
