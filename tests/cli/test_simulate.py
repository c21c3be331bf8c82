"""``altgrad simulate``: without torch, into sinks, and never taken for a measurement."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli
import typer
from typer.testing import CliRunner

from altgrad_core.analysis.runs import load_experiment_runs, load_run
from altgrad_core.cli.simulate import simulate
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import events_of, last_status
from altgrad_core.simulation import stream

app = typer.Typer()
app.command()(simulate)
SMALL = ("--speed", "max", "--steps", "20", "--gpus", "16")


def played(tmp_path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*SMALL, "--runs", str(tmp_path), *arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def test_every_line_says_simulated(tmp_path: Path) -> None:
    text = played(tmp_path)
    first, second, *lines = text.splitlines()
    assert first.endswith("shows it elsewhere.")
    assert second.endswith("Plays as fast as possible: all times here are the cluster's, the clock in front, too.")
    told = [line for line in lines if line[2:3] == ":"]
    assert len(told) > 30
    assert all("  SIMULATED  " in line for line in told[:-1])
    assert "SIMULATED, nothing was trained" in text
    assert "not written: a simulation" in text
    assert "\x1b" not in text


def test_no_event_is_lost_in_the_file_or_in_any_sink(tmp_path: Path) -> None:
    played(tmp_path / "runs", "--sink", "all", "--seed", "5")
    (folder,) = (tmp_path / "runs" / "simulated").iterdir()
    told = [event for event in events_of(folder / "events.jsonl") if event["event"] != "sinks"]
    written = [event for event in told if not event.get("message", "").startswith("Waiting for the sinks")]
    assert all(event["simulated"] is True for event in events_of(folder / "events.jsonl"))
    expected = list(stream.simulate(stream.Simulation(gpus=16, nodes=2, steps=20, seed=5), written[0]["time"]))
    clocks = {"time", "saved_at"}  # of this run and of the one that was expected

    def without_clocks(events: list[dict]) -> list[dict]:
        return [{key: value for key, value in event.items() if key not in clocks} for event in events]

    assert without_clocks(written) == without_clocks(expected)
    assert [event["time"] for event in written] == pytest.approx([event["time"] for event in expected], abs=0.002)
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(len(event["values"]) for event in written if event["event"] == "metrics")
    assert all(row.split(",")[1].startswith("simulated/") for row in rows)
    for files in ("events.out.tfevents.*", "wandb/offline-run-*/run-*.wandb"):
        (file,) = folder.glob(files)
        deadline = time.monotonic() + 10  # W&B writes its file in a process of its own
        while b"simulated/train/loss" not in file.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_becomes_of_a_sink_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that cannot be built: the log says so, and the screen, marked like everything else."""
    monkeypatch.setattr("altgrad_csv.sink.CsvSink.__init__", lambda self, path: 1 / 0)
    text = played(tmp_path, "--sink", "csv")
    (line,) = [line for line in text.splitlines() if "'csv'" in line]
    assert "SIMULATED  WARNING" in line


def test_each_one_has_a_folder_of_its_own(tmp_path: Path) -> None:
    played(tmp_path)
    played(tmp_path)
    names = sorted(path.name for path in (tmp_path / "simulated").iterdir())
    assert names == ["llama-3.1-8b-16xh100-seed0", "llama-3.1-8b-16xh100-seed0-2"]
    table = tomli.loads((tmp_path / "simulated" / names[1] / "run.toml").read_text())
    assert table["simulated"] is True
    assert table["simulation"]["model"] == "llama-3.1-8b"
    assert RunFolder(tmp_path / "simulated" / names[1]).status() == "done"


def test_it_is_neither_compared_nor_reported(tmp_path: Path) -> None:
    played(tmp_path)
    (folder,) = (tmp_path / "simulated").iterdir()
    with pytest.raises(AltgradError, match="nothing was measured"):
        load_run(folder)
    with pytest.raises(AltgradError, match="nothing was measured"):
        load_experiment_runs(folder.parent)
    # Not even when somebody takes the mark out of its configuration.
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(text.replace("simulated = true\n", ""))
    with pytest.raises(AltgradError, match="An event of a simulation"):
        load_run(folder)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--speed", "fast"], "above 0, such as 20, or max"),
        (["--speed", "0"], "above 0"),
        (["--model", "llama"], "llama-3.1-8b"),
        (["--sink", "csw"], "csv"),
        (["--steps", "3", "--epochs", "1"], "got both"),
        (["--nodes", "65"], "1 to 64 nodes"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(app, ["--runs", str(tmp_path), *arguments])
    assert isinstance(result.exception, AltgradError)
    assert text in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_neither_simulate_nor_watch_needs_torch(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from altgrad_core.cli.main import app
app(["simulate", *{SMALL!r}, "--runs", {str(tmp_path)!r}, "--sink", "csv"], standalone_mode=False)
app(["watch", "--runs", {str(tmp_path)!r}], standalone_mode=False)
app(["watch", "--runs", {str(tmp_path)!r}, "--replay", "--speed", "max"], standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SIMULATED, nothing was trained") == 3


def test_a_signal_ends_it_as_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "altgrad_core.cli", "simulate", "--speed", "1", "--runs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "started" in line:
                break
        process.terminate()
        rest = process.stdout.read()
    assert process.returncode == 143
    assert "interrupted: SIGTERM" in rest
    (folder,) = (tmp_path / "simulated").iterdir()
    assert RunFolder(folder).status() == "interrupted"
    assert list(events_of(folder / "events.jsonl"))[-1]["simulated"] is True


@pytest.mark.slow
def test_a_hundred_thousand_steps_keep_memory_flat(tmp_path: Path) -> None:
    """Through the screen and every sink; the process's peak grows by the losses it keeps, not by the events."""
    code = f"""
import resource, sys
from altgrad_core.cli.main import app
def peak(steps, name):
    app(["simulate", "--speed", "max", "--steps", steps, "--gpus", "8", "--sink", "all", "--runs", {str(tmp_path)!r} + name],
        standalone_mode=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small = peak("2000", "/a")
large = peak("100000", "/b")
print(small, large, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = map(float, done.stderr.split()[-2:])
    assert large - small < 24, (small, large)
    (folder,) = (tmp_path / "b" / "simulated").iterdir()
    with (folder / "events.jsonl").open() as file:
        steps = sum("simulated/train/loss" in line for line in file)
    with (folder / "metrics.csv").open() as file:
        rows = sum(",simulated/train/loss," in line for line in file)
    last = last_status(folder / "events.jsonl")
    assert last is not None
    assert steps == rows == last["step"]


def test_the_log_is_the_one_of_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a simulation emits goes through ``EventLog.emit``, as a training's events do."""
    seen = []
    emit = EventLog.emit
    monkeypatch.setattr(EventLog, "emit", lambda self, event: (seen.append(event), emit(self, event))[1])
    played(tmp_path)
    (folder,) = (tmp_path / "simulated").iterdir()
    assert len(seen) == len(list(events_of(folder / "events.jsonl")))
