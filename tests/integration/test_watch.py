"""``altgrad watch``: attaching, dead and silent runs, runs that start over, replays."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import MakeExperiment
from rich.console import Console

import altgrad_core as altgrad
from altgrad_core.console import follow
from altgrad_core.console.follow import Follower, config_of, find, recorded
from altgrad_core.console.screen import PlainScreen
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.folder import RunFolder, hold
from altgrad_core.experiments.pacing import paced


class Folder:
    """A run folder that is written to by hand."""

    def __init__(self, path: Path, *, baseline: bool = False) -> None:
        path.mkdir(parents=True)
        self.run = RunFolder(path)
        self.run.config.write_text(tomli_w.dumps({"name": path.name, "baseline": baseline, "train": {"steps": 10}}))
        self.now = time.time() - 5

    def write(self, event: str, *, torn: bool = False, **fields: Any) -> None:
        self.now += 0.01
        line = json.dumps({"time": self.now, "event": event, **fields})
        with self.run.events.open("a") as file:
            file.write(line[: len(line) // 2] if torn else line + "\n")

    def start(self) -> None:
        self.write("init", what="alerts", facts={})
        self.write("status", status="running", pid=1, step=0, resumed=False)

    def step(self, number: int, loss: float = 2.0) -> None:
        values = {"train/loss": loss, "train/perplexity": 7.4, "train/lr": 1e-3, "train/tokens_per_s": 10.0}
        self.write("metrics", step=number, values=values)

    def end(self, step: int = 10) -> None:
        self.write("status", status="done", step=step, reason="")


def watching(target: Path, during: Callable[[int], None] = lambda round: None) -> tuple[PlainScreen, str]:
    """Follow until it ends by itself; ``during`` is called between looks with their number."""
    file = io.StringIO()
    rounds = iter(range(10**6))

    class Screen(PlainScreen):
        def idle(self) -> None:
            during(next(rounds))

    screen = Screen(Console(file=file), title="t")
    Follower(find(target, Path("nowhere")), screen).follow()
    screen.close()
    return screen, file.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_CHECK_S", 0.0)
    monkeypatch.setattr(follow, "_POLL_S", 0.01)


def test_a_finished_run_is_shown_and_left(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    folder.step(10)
    folder.end()
    screen, text = watching(tmp_path / "e" / "r")
    assert "is done at step 10 of 10" in text
    assert screen.state.runs["r"].status == "done"


def test_it_attaches_to_a_running_run_and_follows_it_to_its_end(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    folder.step(1, loss=3.0)
    with hold(folder.run.lock, "it"):

        def during(number: int) -> None:
            if number == 0:
                folder.step(2, loss=2.5)
                folder.write("log", torn=True, level="info", message="half a line")
            elif number == 1:  # the rest of the line, in another write
                line = json.dumps({"time": folder.now, "event": "log", "level": "info", "message": "half a line"})
                with folder.run.events.open("a") as file:
                    file.write(line[len(line) // 2 :] + "\n")
            elif number == 2:
                folder.write("alert", step=2, alert="nan", action="log", value="NaN", threshold=1.0, message="bad")
                folder.end(2)
                folder.run.lock.unlink()

        screen, text = watching(tmp_path / "e", during)
    assert "is running at step 1 of 10" in text
    assert text.count("half a line") == 1
    assert "WARNING: step 2: bad" in text
    run = screen.state.runs["r"]
    assert (run.status, run.step, run.losses.at(1), run.losses.at(2)) == ("done", 2, 3.0, 2.5)


def test_the_death_of_a_run_is_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    code = """
import sys, time
from pathlib import Path
from altgrad_core.experiments.folder import hold
with hold(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code, folder.run.lock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        def during(number: int) -> None:
            if number == 1:
                folder.step(7)
                process.kill()
                process.wait()

        screen, text = watching(tmp_path / "e" / "r", during)
    assert "ERROR: interrupted: its process ended without a word at step 7; `altgrad run` resumes it" in text
    assert screen.state.runs["r"].status == "interrupted"


def test_a_run_on_another_machine_is_silent_and_never_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    folder.run.lock.write_text("pid 7 on elsewhere\n")  # as a network file system shows it: held there, free here
    monkeypatch.setattr(follow, "_SILENT_S", 5.5)

    def during(number: int) -> None:
        status = screen_status()
        if number > 1000:
            raise AssertionError(status)
        if status == "silent" and not seen:
            seen.append(status)
            folder.step(3)
        elif seen and len(seen) == 1 and status == "running":
            seen.append(status)
            folder.end(3)

    seen: list[str] = []
    states: list[PlainScreen] = []
    monkeypatch.setattr(PlainScreen, "introduce", lambda self, state: states.append(self))
    screen_status = lambda: states[0].state.runs["r"].status  # noqa: E731
    screen, text = watching(tmp_path / "e" / "r", during)
    assert seen == ["silent", "running"]
    assert "has said nothing for 0:00:0" in text
    assert "its process is on elsewhere, it may be dead" in text
    assert screen.state.runs["r"].status == "done"


@pytest.mark.parametrize("one", [True, False])
def test_a_run_that_is_being_resumed_is_going_on(tmp_path: Path, one: bool) -> None:
    """Its last event says that it is over, and for a while, until torch is imported and its data are open, the next."""
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    folder.write("status", status="interrupted", step=7, reason="SIGTERM")
    with hold(folder.run.lock, "it"):

        def during(number: int) -> None:
            if number == 3:
                folder.write("status", status="running", pid=2, step=7, resumed=True)
                folder.step(8)
            elif number == 6:
                folder.end(8)
            elif number == 9:  # its sinks come to their end, and its process with them
                folder.run.lock.unlink()

        screen, text = watching(tmp_path / "e" / "r" if one else tmp_path / "e", during)
    assert "is interrupted (SIGTERM) at step 7" in text
    assert (screen.state.runs["r"].status, screen.state.runs["r"].step) == ("done", 8)


@pytest.mark.parametrize("one", [True, False])
def test_a_fork_is_waited_for_by_its_own_lock(tmp_path: Path, one: bool) -> None:
    """A fork is in no experiment file: what plans and trains it holds a lock of its own."""
    parent, fork = Folder(tmp_path / "e" / "a"), Folder(tmp_path / "e" / "b")
    parent.start()
    parent.end()
    fork.start()
    fork.write("status", status="interrupted", step=3, reason="SIGTERM")
    with hold(fork.run.fork_lock, "the fork"):

        def during(number: int) -> None:
            if number == 3:
                fork.write("status", status="running", pid=2, step=3, resumed=True)
                fork.end(9)
                fork.run.fork_lock.unlink()

        screen, _ = watching(tmp_path / "e" / "b" if one else tmp_path / "e", during)
    assert screen.state.runs["b"].status == "done"


def test_one_run_is_waited_for_while_its_experiment_is_trained(tmp_path: Path) -> None:
    """It is interrupted, and its turn comes when another run is done."""
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    folder.write("status", status="interrupted", step=7, reason="SIGTERM")
    lock = tmp_path / "e" / ".lock"
    with hold(lock, "the experiment"):

        def during(number: int) -> None:
            if number == 3:
                folder.write("status", status="running", pid=2, step=7, resumed=True)
                folder.end(9)
                lock.unlink()

        screen, _ = watching(tmp_path / "e" / "r", during)
    assert screen.state.runs["r"].status == "done"


def test_new_runs_are_noticed_and_old_ones_that_start_over(tmp_path: Path) -> None:
    first = Folder(tmp_path / "e" / "b", baseline=True)
    first.start()
    first.step(1)
    lock = tmp_path / "e" / ".lock"
    with hold(lock, "the experiment"):

        def during(number: int) -> None:
            if number == 0:
                second = Folder(tmp_path / "e" / "a")
                second.start()
                second.step(1)
                second.end(1)
            elif number == 1:
                (tmp_path / "e" / "b").rename(tmp_path / "old")
                again = Folder(tmp_path / "e" / "b")
                again.step(4)
                again.end(4)
            elif number > 3:
                lock.unlink()

        screen, _ = watching(tmp_path / "e", during)
    assert set(screen.state.runs) == {"a", "b"}
    assert screen.state.runs["b"].losses.at(1) is None
    assert screen.state.runs["b"].step == 4


def test_what_is_meant(tmp_path: Path) -> None:
    for number, name in enumerate(("old/x", "new/x", "new/y")):
        folder = Folder(tmp_path / name)
        folder.start()

        os.utime(folder.run.events, (number, number))
    assert find(None, tmp_path).folder == tmp_path / "new"
    assert [run.path.name for run in find(tmp_path, tmp_path).runs()] == ["x", "y"]
    assert find(Path("old"), tmp_path).folder == tmp_path / "old"
    (tmp_path / "new" / "x" / "run.toml").write_text("simulated = true\n")
    with hold(tmp_path / "new" / "x" / "run.lock", "x"):
        assert find(None, tmp_path).folder == tmp_path / "new"  # nothing else is going on
        with hold(tmp_path / "old" / "x" / "run.lock", "x"):
            assert find(None, tmp_path).folder == tmp_path / "old"  # a training before a simulation
    only = find(tmp_path / "new" / "y", tmp_path)
    assert (only.title, [run.path.name for run in only.runs()]) == ("new/y", ["y"])
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", Path("nothing")):
        with pytest.raises(AltgradError, match=r"a run or (of )?an experiment"):
            find(wrong, tmp_path)
    assert config_of(tmp_path / "empty")["steps"] == 0


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "e" / "r")
    folder.start()
    with folder.run.events.open("a") as file:
        file.write("{{{\n")
    with pytest.raises(AltgradError, match="expected one JSON object with an event"):
        watching(tmp_path / "e" / "r")


def test_a_replay_is_the_recording_in_order_and_at_its_pace(tmp_path: Path) -> None:
    a, b = Folder(tmp_path / "e" / "a"), Folder(tmp_path / "e" / "b")
    b.now = a.now
    for number in range(1, 5):
        a.step(number)
        b.now = a.now
        b.step(number)
        a.now = b.now
    a.now += 1000  # a night between the stretches
    a.end()
    told = list(recorded([a.run, b.run]))
    assert [name for name, _ in told] == ["a", "b"] * 4 + ["a"]
    assert [event["time"] for _, event in told] == sorted(event["time"] for _, event in told)
    idles: list[float] = []
    began = time.monotonic()
    assert list(paced(told, 1.0, lambda: idles.append(time.monotonic()), longest_s=0.3)) == told
    assert 0.36 <= time.monotonic() - began < 3
    assert len(idles) > len(told)
    began = time.monotonic()
    assert list(paced(told, float("inf"), lambda: None)) == told
    assert time.monotonic() - began < 0.3


def test_a_real_run_watched_and_replayed_ends_in_the_same_state(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    file = make_experiment('[[run]]\nname = "bf16"\nbaseline = true\n[[run]]\nname = "e5m2"\nrecipe = "e5m2"\n')
    runs = altgrad.run(file, overrides=["train.steps=3", "train.eval_batches=1"])
    screen, text = watching(tmp_path / "runs" / "small")
    for run in runs:
        state = screen.state.runs[run.name]
        steps, losses = run.metrics("train/loss")
        assert [state.losses.at(step) for step in steps] == losses
        assert (state.status, state.step, state.baseline) == ("done", 3, run.baseline)
        assert state.validation is not None
        assert state.validation.loss == run.metrics("val/loss")[1][-1]
    assert str(tmp_path / "runs" / "small" / "e5m2" / "checkpoints" / "step-000003") in text
    replayed = PlainScreen(Console(file=io.StringIO()))
    for folder in find(tmp_path / "runs" / "small", tmp_path).runs():
        replayed.add(**config_of(folder.path))
    for name, event in recorded(find(tmp_path / "runs" / "small", tmp_path).runs()):
        replayed.event(name, event)
    for name, state in screen.state.runs.items():
        assert replayed.state.runs[name].values == state.values
        assert replayed.state.runs[name].facts == state.facts
