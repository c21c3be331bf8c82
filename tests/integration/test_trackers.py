"""Real trainings with the sinks ``wandb`` and ``tensorboard``: killed, resumed, and with a server that is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb
from helpers import MakeExperiment, altgrad_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import altgrad_run, checkpoint_hashes, metrics_of, wait_for
from wandb_parts import Server, offline_file, records, rows, summary

import altgrad_core as altgrad

RUNS = """
[[run]]
name = "bf16"
baseline = true
recipe = "bf16"
[[run]]
name = "r"
recipe = "e5m2"
train = { steps = 90 }
"""
WANDB = '[[sink]]\nkind = "wandb"\nmode = "{mode}"\n'
TENSORBOARD = '[[sink]]\nkind = "tensorboard"\n'


ONE = RUNS.partition('[[run]]\nname = "r"')[0]


@pytest.fixture(autouse=True)
def fresh_session() -> Iterator[None]:
    """W&B reads the environment once a session."""
    yield
    wandb.teardown()


def kill(process: subprocess.Popen[str], folder: Path, ready: Callable[[], object]) -> None:
    """Kill the run and its worker after some steps, when its trackers have begun."""
    told = wait_for(folder / "events.jsonl", '"event": "metrics", "step": 20, ')
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    os.kill(next(event["pid"] for event in told if event.get("status") == "running"), signal.SIGKILL)
    process.communicate()
    time.sleep(0.2)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def table(folder: Path) -> dict[int, dict[str, float]]:
    """Return step -> metrics as the run's own files have them."""
    run = altgrad.load_run(folder)
    return {step: dict(values) for step, values in run.values.items()}


def test_killed_and_resumed_it_is_one_run(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """Every step once, with all metrics that the run has for it, in W&B's file and in TensorBoard's."""
    file = make_experiment(RUNS + WANDB.format(mode="offline") + TENSORBOARD, launcher="process")
    folder = tmp_path / "runs" / "small" / "r"
    ready = lambda: list(folder.glob("wandb/offline-run-*/*.wandb"))  # noqa: E731
    kill(altgrad_run(file, "runs", "--only", "r"), folder, ready)
    assert altgrad.load_run(folder).status == "interrupted"
    first_id = offline_file(folder).stem
    finish(altgrad_run(file, "runs", "--jobs", "2"))
    assert altgrad.load_run(folder).stretches == 2
    wanted = table(folder)
    assert max(len(values) for values in wanted.values()) > 300

    stored = offline_file(folder)
    assert stored.stem == first_id
    found = {int(row.pop("_step")): row for row in rows(stored)}
    assert list(found) == list(wanted) == list(range(91))
    for step, row in found.items():
        kept = {name: value for name, value in row.items() if name[0] != "_" and not name.startswith("alerts/")}
        assert kept == pytest.approx(wanted[step], rel=1e-9, nan_ok=True)
    outcome = summary(stored)["outcome"]
    assert outcome["status"] == "done"
    assert outcome["baseline"] == "bf16"
    assert outcome["difference_percent"] == pytest.approx(
        100 * (outcome_loss(wanted, 12) / outcome["baseline_loss"] - 1)
    )
    assert outcome["final_loss"] == wanted[90]["val/loss"]
    (told,) = [record.run for record in records(stored) if record.WhichOneof("record_type") == "run"]
    assert (told.project, told.run_group, told.display_name) == ("altgrad", "small", "r")

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for name in {name for values in wanted.values() for name in values}:
        seen = [(event.step, event.value) for event in read.Scalars(name)]
        assert [step for step, _ in seen] == [step for step, values in wanted.items() if name in values], name
        assert [value for _, value in seen] == pytest.approx([wanted[step][name] for step, _ in seen], nan_ok=True)


def outcome_loss(wanted: dict[int, dict[str, float]], before: int) -> float:
    """Return the validation loss at the last step that the baseline, which trains for 12 steps, has one, too."""
    return wanted[max(step for step, values in wanted.items() if "val/loss" in values and step <= before)]["val/loss"]


def test_a_dead_server_changes_no_bit(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for runs, sink in (("without", ""), ("with", WANDB.format(mode="online"))):
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)  # WANDB_BASE_URL is a closed port
        status, said[runs] = altgrad_here("run", make_experiment(ONE + sink, dropout=0.1), "--runs", tmp_path / runs)
        assert status == 0
    without, folder = tmp_path / "without" / "small" / "bf16", tmp_path / "with" / "small" / "bf16"
    assert metrics_of(folder) == metrics_of(without)
    mine, theirs = (checkpoint_hashes(path) for path in (folder, without))
    tensors = [name for name in theirs if name.endswith(".safetensors")]
    assert len(tensors) >= 4
    assert {name: mine[name] for name in tensors} == {name: theirs[name] for name in tensors}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (warning,) = [event["message"] for event in events if event.get("level") == "warning"]
    stored = offline_file(folder)
    assert warning.startswith("The sink 'wandb': http://127.0.0.1:9 does not answer ")
    assert warning.endswith(f"wandb sync {stored.parent}")
    assert said["with"].count("does not answer") == 1
    assert altgrad.load_run(folder).sinks["wandb"]["status"] == "complete"
    assert [row["_step"] for row in rows(stored)] == list(range(13))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_online_a_killed_run_goes_on_without_a_gap(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's client uploads every 15 s, so what it had of the killed stretch is lost with it."""
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    file = make_experiment(RUNS + WANDB.format(mode="online"), launcher="process")
    folder = tmp_path / "runs" / "small" / "r"
    kill(altgrad_run(file, "runs", "--only", "r"), folder, lambda: server.buckets)
    finish(altgrad_run(file, "runs", "--jobs", "2"))
    ids = {bucket["displayName"]: run_id for run_id, bucket in server.buckets.items()}
    assert sorted(ids) == ["bf16", "r"]
    for name, run_id in ids.items():
        wanted = table(tmp_path / "runs" / "small" / name)
        found = server.history(run_id)
        assert [row["_step"] for row in found] == list(wanted)
        assert [row["val/loss"] for row in found if "val/loss" in row] == pytest.approx(
            [values["val/loss"] for values in wanted.values() if "val/loss" in values]
        )
        assert server.exit_codes[run_id] == 0
    server.stop()


def test_files_that_were_asked_for(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    only = RUNS.partition('[[run]]\nname = "r"')[0]
    sink = WANDB.format(mode="offline") + "report = true\nweights = true\n"
    finish(altgrad_run(make_experiment(only + sink, launcher="process"), "runs"))
    folder = tmp_path / "runs" / "small" / "bf16"
    found = {}
    for record in records(offline_file(folder)):
        if record.WhichOneof("record_type") == "artifact":
            (content,) = record.artifact.manifest.contents
            found[record.artifact.name, record.artifact.type] = Path(content.local_path)
    assert list(found) == [("small-bf16-weights", "model"), ("small-report", "report")]
    weights, page = found.values()
    assert weights.is_absolute()
    from safetensors.torch import load_file

    assert "blocks.0.mlp.up.weight" in load_file(weights)
    assert "bf16, the baseline, ends with" in page.read_text()


def test_a_sink_whose_package_is_missing(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check says so before the training, the run once in it; W&B's folder of a name that could be taken for it is there."""
    from altgrad_core import plugins

    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "wandb").mkdir()
    plugins.installed.cache_clear()
    try:
        file = make_experiment(ONE + WANDB.format(mode="offline") + TENSORBOARD)
        missing = "needs the package 'wandb', which is not installed: pip install 'altgrad[wandb]'"
        status, said = altgrad_here("check", file)
        assert status == 0
        assert f"Missing: the sink 'wandb' {missing}" in said
        assert "Missing: the sink 'tensorboard' needs the package 'tensorboard'" in said
        assert "Did not load" not in said
        status, said = altgrad_here("plugins", "altgrad_wandb")
        assert f"missing (the sink 'wandb' {missing})" in said
        status, said = altgrad_here("run", file)
        assert status == 0
        (warning,) = [line for line in said.splitlines() if "The sink 'wandb' failed and receives nothing more" in line]
        assert warning.count(missing) == 1
    finally:
        plugins.installed.cache_clear()
    assert altgrad.load_run(tmp_path / "runs" / "small" / "bf16").status == "done"
