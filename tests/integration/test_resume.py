"""A run killed with kill -9 and started again ends with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from altgrad_checkpoint.local import LocalBackend
from helpers import MakeExperiment

import altgrad_core as altgrad

TIMES = ("train/tokens_per_s", "train/step_s", "train/probe_s")

RUNS = """
[[run]]
name = "bf16"
recipe = "bf16"
[[run]]
name = "e5m2-delayed"
recipe = { base = "e5m2", scaling = { kind = "delayed", history = 4 }, gradient = "e5m2" }
[[sink]]
kind = "csv"
"""


def altgrad_run(file: Path, runs: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "altgrad_core.cli", "run", str(file), "--runs", runs, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(events: Path, text: str) -> list[dict[str, object]]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if events.exists() and text in events.read_text():
            return [json.loads(line) for line in events.read_text().splitlines() if line.endswith("}")]
        time.sleep(0.02)
    raise AssertionError(f"{text} did not appear in {events}")


def metrics_of(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    run = altgrad.load_run(folder)
    return {name: run.metrics(name) for name in run.metric_names() if name not in TIMES}


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """Return the hash of the whole state in every checkpoint that is there: tensors, counters, generators, the step."""
    backend = LocalBackend(folder / "checkpoints")
    return {name: backend.verify(name).state_hash for name in backend.names()}


def csv_rows(folder: Path) -> list[str]:
    rows = (folder / "metrics.csv").read_text().splitlines()
    return [row for row in rows if row.split(",")[1] not in TIMES]


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow), 11])
def test_kill_minus_nine(make_experiment: MakeExperiment, tmp_path: Path, step: int) -> None:
    file = make_experiment(RUNS, launcher="process", dropout=0.1)
    straight = altgrad_run(file, "straight", "--jobs", "2")
    killed = altgrad_run(file, "killed", "--only", "e5m2-delayed")
    folder = tmp_path / "killed" / "small" / "e5m2-delayed"
    events = wait_for(folder / "events.jsonl", f'"event": "metrics", "step": {step}, ')
    os.kill(killed.pid, signal.SIGKILL)
    os.kill(next(e["pid"] for e in events if e.get("status") == "running"), signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    time.sleep(0.2)
    assert altgrad.load_run(folder).status == "interrupted"

    again = altgrad_run(file, "killed", "--only", "e5m2-delayed")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    said, _ = straight.communicate(timeout=120)
    assert straight.returncode == 0, said

    reference = tmp_path / "straight" / "small" / "e5m2-delayed"
    assert altgrad.load_run(folder).stretches == 2
    assert metrics_of(folder) == metrics_of(reference)
    assert csv_rows(folder) == csv_rows(reference)
    mine, theirs = checkpoint_hashes(folder), checkpoint_hashes(reference)
    assert mine == theirs
    assert len(mine) >= 3


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on(
    make_experiment: MakeExperiment, tmp_path: Path, number: signal.Signals
) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = { steps = 60 }\n', launcher="process")
    first = altgrad_run(file, "runs")
    folder = tmp_path / "runs" / "small" / "r"
    wait_for(folder / "events.jsonl", '"step": 5, ')
    first.send_signal(number)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + number, said
    assert "Give the same command again" in said
    run = altgrad.load_run(folder)
    assert run.status == "interrupted"
    stopped_at = run.checkpoints[-1]["step"]
    assert 5 <= stopped_at < 60
    assert stopped_at == run.metrics("train/loss")[0][-1], "no finished step is lost"
    second = altgrad_run(file, "runs")
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert f"resumed at step {stopped_at}" in said
    assert altgrad.load_run(folder).metrics("train/loss")[0] == list(range(1, 61))
    third = altgrad_run(file, "runs")
    said, _ = third.communicate(timeout=60)
    assert third.returncode == 0
    assert "is done already" in said


def test_a_second_altgrad_run_is_told_who_holds_the_folder(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = { steps = 500 }\n', launcher="process")
    first = altgrad_run(file, "runs")
    events = tmp_path / "runs" / "small" / "r" / "events.jsonl"
    wait_for(events, '"status": "running"')
    second = altgrad_run(file, "runs")
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is held by pid {first.pid} on " in said
    # A worker whose parent is gone saves a checkpoint and ends: no training that nobody sees.
    first.kill()
    first.communicate()
    deadline = time.monotonic() + 60
    while altgrad.load_run(events.parent).status == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    run = altgrad.load_run(events.parent)
    assert run.status == "interrupted"
    assert run.checkpoints[-1]["step"] == run.metrics("train/loss")[0][-1]


def test_a_signal_to_every_process_at_once_loses_nothing(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """As schedulers send it: parent and worker get SIGTERM, and the parent sends it on."""
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = { steps = 5000 }\n', launcher="process")
    first = altgrad_run(file, "runs")
    events = tmp_path / "runs" / "small" / "r" / "events.jsonl"
    wait_for(events, '"step": 3, ')
    (running,) = [e for e in wait_for(events, '"status": "running"') if e.get("status") == "running"]
    os.kill(running["pid"], signal.SIGTERM)
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 143, said
    run = altgrad.load_run(events.parent)
    assert run.checkpoints[-1]["step"] == run.metrics("train/loss")[0][-1]


def test_a_line_torn_by_the_crash_does_not_stop_the_next_run(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\n', launcher="process")
    first = altgrad_run(file, "runs")
    first.communicate(timeout=60)
    assert first.returncode == 0
    folder = tmp_path / "runs" / "small" / "r"
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    done = next(i for i, line in enumerate(lines) if b'"step": 10, ' in line)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:done]) + lines[done][:77])
    for checkpoint in ("step-000010", "step-000012"):
        shutil.rmtree(folder / "checkpoints" / checkpoint)
    again = altgrad_run(file, "runs")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "resumed at step 8" in said
    assert altgrad.load_run(folder).metrics("train/loss")[0] == list(range(1, 13))


def test_a_signal_while_the_worker_starts_reaches_it(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = { steps = 5000 }\n', launcher="process")
    first = altgrad_run(file, "runs")
    lock = tmp_path / "runs" / "small" / "r" / "run.lock"
    deadline = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGINT)  # the worker imports torch now
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "Traceback" not in said
    run = altgrad.load_run(lock.parent)
    assert run.status == "interrupted"
    assert run.checkpoints[-1]["step"] < 100


def test_ctrl_c_ends_all_runs_of_the_inline_launcher(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    steps = "train = { steps = 5000 }\n"
    file = make_experiment(f'[[run]]\nname = "a"\n{steps}[[run]]\nname = "b"\n{steps}', launcher="inline")
    first = altgrad_run(file, "runs")
    wait_for(tmp_path / "runs" / "small" / "a" / "events.jsonl", '"step": 5, ')
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert altgrad.load_run(tmp_path / "runs" / "small" / "a").status == "interrupted"
    assert not (tmp_path / "runs" / "small" / "b" / "events.jsonl").exists()


@pytest.mark.slow
def test_another_environment_is_said_and_kept(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = { steps = 60 }\n', launcher="process")
    first = altgrad_run(file, "runs")
    folder = tmp_path / "runs" / "small" / "r"
    wait_for(folder / "events.jsonl", '"step": 3, ')
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    facts = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps({**facts, "cpu_threads": 77}))
    second = altgrad_run(file, "runs")
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert f"cpu_threads: 77 -> {facts['cpu_threads']}" in said
    assert json.loads((folder / "env.json").read_text())["earlier"][0]["cpu_threads"] == 77


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_a_run_unless_nohup_says_otherwise(
    make_experiment: MakeExperiment, tmp_path: Path, nohup: bool
) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\ntrain = { steps = 60 }\n', launcher="process")
    command = [sys.executable, "-m", "altgrad_core.cli", "run", str(file), "--runs", "runs"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    events = tmp_path / "runs" / "small" / "r" / "events.jsonl"
    wait_for(events, '"step": 3, ')
    first.send_signal(signal.SIGHUP)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == (0 if nohup else 128 + signal.SIGHUP), said
    assert altgrad.load_run(events.parent).status == ("done" if nohup else "interrupted")
