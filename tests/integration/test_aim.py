"""The sink ``aim`` in real trainings: what Aim gives back is what ``events.jsonl`` holds, after crashes and side by side."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli
from aim_reader import AIM, aim_histograms, aim_rows, aim_runs, assert_is_of, told
from helpers import MakeExperiment, altgrad_cli, altgrad_here
from test_resume import altgrad_run, wait_for

import altgrad_core as altgrad
from altgrad_core.testing.sinkevents import by_metric, course, difference, rows_of

pytest.importorskip("aim", reason="pip install 'altgrad[aim]'; there is no Aim for Python 3.13 and newer")

SINK = '[[sink]]\nkind = "aim"\n'
RUN = '[[run]]\nname = "{name}"\nrecipe = "e5m2"\ntrain = {{ steps = {steps} }}\nalerts = {{ bit_stall = 0.001 }}\n'


def test_a_training_comes_back_from_aim(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(RUN.format(name="r", steps=12) + SINK)
    status, said = altgrad_here("run", file)
    assert status == 0, said
    folder = tmp_path / "runs" / "small" / "r"
    assert altgrad.load_run(folder).sinks["aim"] == {"status": "complete", "missed": 0, "reason": ""}
    (run,) = aim_runs(tmp_path).values()
    assert_is_of(run, folder)
    assert {"blocks.0.mlp.up.input", "lm_head.grad_output"} <= {cast for _, cast in aim_histograms(run)}
    assert (run.name, run.experiment, run.tags, run.active) == ("r", "small", [], False)
    contexts = {(sequence.name, *sequence.context.to_dict().items()) for sequence in run.metrics()}
    assert {
        ("loss", ("subset", "train")),
        ("loss", ("subset", "val")),
        ("lr", ("subset", "train")),
        ("grad_cos_sim",),
    } <= contexts
    assert ("overflow_rate", ("layer", "blocks.0.mlp.up.input")) in contexts
    assert ("grad_norm_l2", ("layer", "blocks.0.mlp.up.weight")) in contexts
    assert not [name for name, *_ in contexts if name.startswith("__")], "no samples of Aim's own"
    assert run.get_terminal_logs() is None
    table = tomli.loads((folder / "run.toml").read_text())
    assert table.pop("sink") == [{"kind": "aim", "repo": ""}]
    assert run["hparams"] == table | {"environment": json.loads((folder / "env.json").read_text())}
    assert run["altgrad"] == {"folder": str(folder), "status": "done"}
    losses = altgrad.load_run(folder).metrics("val/loss")[1]
    assert (run["outcome", "status"], run["outcome", "final_loss"]) == ("done", losses[-1])
    assert (
        run["facts", "model", "parameters"]
        == next(e for e in told(folder) if e.get("what") == "model")["facts"]["parameters"]
    )
    found = run.repo.query_runs("run.hparams.train.steps == 12 and run.experiment == 'small'", report_mode=0)
    assert len(list(found.iter_runs())) == 1


def test_numbers_that_are_none(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    run = '[[run]]\nname = "r"\nrecipe = "bf16"\ntrain = { steps = 8, learning_rate = 1e30, warmup_steps = 0 }\n'
    status, said = altgrad_here("run", make_experiment(run + SINK))
    assert status == 0, said
    folder = tmp_path / "runs" / "small" / "r"
    assert "NaN" in [e["values"].get("train/loss") for e in told(folder) if e["event"] == "metrics"]
    assert_is_of(aim_runs(tmp_path)["r"], folder)


def test_two_runs_at_once_share_a_repository(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """Two workers that begin at the same moment, in a folder that has no repository yet."""
    runs = RUN.format(name="one", steps=20) + RUN.format(name="other", steps=20)
    done = altgrad_cli("run", make_experiment(runs + SINK, launcher="process"), "--jobs", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [tmp_path / "runs" / "small" / name for name in ("one", "other")]
    times = [[e["time"] for e in told(folder) if e["event"] == "metrics"] for folder in folders]
    assert max(t[0] for t in times) < min(t[-1] for t in times), "they did train at the same time"
    found = aim_runs(tmp_path)
    assert sorted(found) == ["one", "other"]
    for folder in folders:
        assert altgrad.load_run(folder).sinks["aim"]["status"] == "complete"
        assert_is_of(found[folder.name], folder)


BEGIN = """
import sys, time
from pathlib import Path
import aim
from altgrad_aim.sink import AimSink
from altgrad_core.testing.sinkevents import course
print("ready", flush=True)
sys.stdin.readline()
sink = AimSink("", Path(sys.argv[1]))
for event in course(range(20)):
    sink.write(event)
    sink.state_dict()
sink.close()
"""


def test_processes_that_begin_and_end_at_the_same_moment(tmp_path: Path) -> None:
    """Each would make the repository, name its run, and index it, if the others did not hold it off."""
    folders = [tmp_path / "runs" / "e" / f"r{number}" for number in range(4)]
    with contextlib.ExitStack() as stack:
        processes = []
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "run.toml").write_text(f'experiment = "e"\nname = "{folder.name}"\n')
            command, pipe = [sys.executable, "-c", BEGIN, str(folder)], subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            processes.append(stack.enter_context(process))
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
    found = aim_runs(tmp_path)
    assert sorted(found) == ["r0", "r1", "r2", "r3"]
    for run in found.values():
        assert difference(by_metric(aim_rows(run)), by_metric(rows_of(course(range(20))))) == ""


HOLD = """
import sys
from aim import Repo
index = Repo.from_path(sys.argv[1])._get_index_tree("meta", 0)
print("held", flush=True)
sys.stdin.readline()
"""


def test_an_index_that_another_holds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is whole; it is found once the index is made anew, as the message says."""
    from altgrad_aim import repository
    from altgrad_aim.sink import AimSink

    monkeypatch.setattr(repository, "_INDEX_TRIES", 2)
    folder = tmp_path / "runs" / "e" / "r"
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text('experiment = "e"\nname = "r"\n')
    sink = AimSink("", folder)
    for event in course(range(3)):
        sink.write(event)
    command, pipe = [sys.executable, "-c", HOLD, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        said = sink.close()
        process.communicate("\n", timeout=60)
    assert said.startswith(f"the run is in {tmp_path / '.aim'}, but queries do not find it yet")
    assert aim_runs(tmp_path) == {}
    shown = subprocess.run(
        [*AIM, *shlex.split(said.partition("so does: aim ")[2]), "-y"], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert difference(by_metric(aim_rows(aim_runs(tmp_path)["r"])), by_metric(rows_of(course(range(3))))) == ""


def test_killed_and_resumed_it_is_one_run(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """Killed some steps after a checkpoint; those steps come again, and Aim has each once."""
    file = make_experiment(RUN.format(name="r", steps=30) + SINK, launcher="process")
    folder = tmp_path / "runs" / "small" / "r"
    first = altgrad_run(file, "runs")
    events = wait_for(folder / "events.jsonl", '"event": "metrics", "step": 11, ')
    os.kill(first.pid, signal.SIGKILL)
    os.kill(next(e["pid"] for e in events if e.get("status") == "running"), signal.SIGKILL)
    first.communicate()
    time.sleep(0.2)
    again = altgrad_run(file, "runs")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    run = altgrad.load_run(folder)
    assert run.stretches == 2
    assert run.sinks["aim"] == {"status": "complete", "missed": 0, "reason": ""}
    (found,) = aim_runs(tmp_path).values()
    assert_is_of(found, folder)
    assert found["altgrad", "status"] == "done"
    assert [path.name for path in (tmp_path / ".aim" / "locks").iterdir()] == ["altgrad"]
    assert not list((tmp_path / ".aim" / "meta" / "progress").iterdir()), "nothing is in progress"


@pytest.mark.slow
def test_a_repository_that_was_deleted_gets_all_of_the_run(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """Between an interruption and the next call."""
    file = make_experiment(RUN.format(name="r", steps=30) + SINK, launcher="process")
    folder = tmp_path / "runs" / "small" / "r"
    first = altgrad_run(file, "runs")
    wait_for(folder / "events.jsonl", '"event": "metrics", "step": 5, ')
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 143, said
    assert (tmp_path / ".aim").is_dir()
    shutil.rmtree(tmp_path / ".aim")
    again = altgrad_run(file, "runs")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert_is_of(aim_runs(tmp_path)["r"], folder)
    assert any("gets all events of the run anew" in e.get("message", "") for e in told(folder))


def test_a_simulated_run_is_marked(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = altgrad_cli(
        "simulate", "--speed", "max", "--steps", 20, "--gpus", 16, "--runs", runs, "--sink", "aim", "--seed", 5
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = aim_runs(tmp_path).values()
    (folder,) = (runs / "simulated").iterdir()
    assert difference(by_metric(aim_rows(run)), by_metric(rows_of(told(folder)))) == ""
    assert {sequence.name for sequence in run.metrics()} >= {"simulated/loss", "simulated/lr"}
    assert all(sequence.name.startswith("simulated/") for sequence in run.metrics())
    assert (run.experiment, run.tags, run["hparams", "simulated"]) == ("simulated", ["simulated"], True)
