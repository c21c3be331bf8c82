"""``altgrad replay`` and the flight recorder: a step that went wrong, looked at again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import TIMES, MakeExperiment, altgrad_here, comparable_metrics
from safetensors.torch import load_file

import altgrad_core as altgrad

FINE = """
[[run]]
name = "r"
[run.recipe]
base = "e5m2"
scaling = { kind = "delayed", history = 4 }
gradient = { format = "e5m2", rounding = "stochastic" }
"""
ASKS = """
[run.alerts]
bit_stall = { threshold = 0.01, patience = 2, action = "checkpoint" }
"""
EXPLODES = """
[[run]]
name = "r"
recipe = "e4m3fn"
alerts = { nan_patience = 3 }
train = { learning_rate = 1e30, min_learning_rate = 1e30, warmup_steps = 0, steps = 50, grad_clip = 0.0 }
"""


def replayed(moment: str, *options: str) -> dict:
    status, said = altgrad_here("replay", moment, "--json", *options)
    assert status == 0, said
    return json.loads(said)


def test_every_step_is_done_again_exactly(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    (run,) = altgrad.run(make_experiment(FINE, dropout=0.1))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    logged = dict(zip(*run.metrics("train/loss"), strict=True))
    cosines = dict(zip(*run.metrics("grad_cos_sim"), strict=True))
    for step in (1, 6, 12):
        found = replayed(f"runs/small/r@{step}")
        (execution,) = found["executions"]
        assert found["exact"] is True
        assert execution["metrics"]["train/loss"] == logged[step]
        if step in cosines:
            assert execution["metrics"]["grad_cos_sim"] == cosines[step]
        assert set(execution["casts"]) >= {"blocks.0.mlp.up.input", "blocks.0.mlp.up.grad_output"}
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before, "nothing is written"


def test_probes_remember_at_the_step_what_they_remembered_in_the_run(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    """From a checkpoint and from the beginning, with a probe off, and with a folder that is no checkpoint."""
    probes = "probes = { gradients = { every = 2, window = 3 }, shadow = false }\ntrain = { eval_every = 0 }\n"
    (run,) = altgrad.run(make_experiment(FINE.replace("[run.recipe]", f"{probes}[run.recipe]"), dropout=0.1))
    (run.folder / "checkpoints" / "old copy").mkdir()
    for step, start in ((4, None), (11, "step-000008"), (12, "step-000008")):
        found = replayed(f"runs/small/r@{step}", *(("--recipe", "fp32") if step == 11 else ()))
        assert (found["checkpoint"], found["exact"]) == (start, True)
        recorded = {k: v for k, v in found["recorded"].items() if k not in TIMES and not k.startswith("val/")}
        metrics = found["executions"][0]["metrics"]
        assert {name: metrics[name] for name in recorded} == recorded
        assert any(name.startswith("dead_neuron_window_frac/") for name in recorded) == (step != 11)
        assert metrics["grad_cos_sim"] < 1, "measured, although the run did not"
        assert all("dead_neuron_window_frac" in execution["metrics"] for execution in found["executions"])


def test_other_data_are_said(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    altgrad.run(make_experiment(FINE))
    (tmp_path / "text" / "0.txt").write_text("Other words. " * 40)
    status, said = altgrad_here("replay", "runs/small/r@10")
    assert (status, "the data: source_sha256: " in said, "other data" in said) == (0, True, True)


def test_the_step_with_another_recipe_beside_it(make_experiment: MakeExperiment) -> None:
    altgrad.run(make_experiment(FINE))
    found = replayed("runs/small/r@10", "--recipe", "fp32")
    run, other = found["executions"]
    assert found["retrained"] == 1
    assert (run["changed"], other["changed"], other["recipe"]) == (False, True, "fp32")
    assert other["metrics"]["grad_cos_sim"] == pytest.approx(1.0, abs=1e-6)
    assert run["metrics"]["grad_cos_sim"] < 0.9999
    assert other["metrics"]["train/loss"] == pytest.approx(run["metrics"]["train/loss"], rel=0.02)
    _, said = altgrad_here("replay", "runs/small/r@10", "--recipe", "fp32")
    assert "loss and gradient norm are those of the run, bit for bit" in said
    assert "fp32 (changed)" in said


def test_an_anomaly_leaves_everything_and_replays(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    (run,) = altgrad.run(make_experiment(EXPLODES))
    assert run.status == "stopped"
    first = next(alert for alert in run.alerts if alert["alert"] == "nan")["step"]
    folder = run.folder / "anomalies" / f"step-{first:06d}"
    facts = json.loads((folder / "anomaly.json").read_text())
    assert facts["step"] == first
    assert facts["alerts"][0]["alert"] == "nan"
    (place,) = [place for place in facts["first"] if place["kind"] == "non-finite"]
    assert place["phase"] in ("weights", "forward")
    batch = load_file(folder / "batch.safetensors")
    assert batch["inputs"].shape == batch["targets"].shape == (1, 4, 32)
    steps = [json.loads(line)["step"] for line in (folder / "statistics.jsonl").read_text().splitlines()]
    assert steps == list(range(max(1, first - 20), first))
    assert (run.folder / "checkpoints" / facts["checkpoint"]).is_dir()
    found = replayed(f"runs/small/r@{first}")
    assert found["checkpoint"] == f"anomaly-{first:06d}"
    assert found["retrained"] == 0
    assert found["executions"][0]["first"] == facts["first"]
    assert found["executions"][0]["casts"] == facts["casts"]


def test_recording_changes_nothing_of_the_training(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """An alert on a rate records in the middle of a run with every kind of state."""
    watched = FINE.replace('"r"', '"watched"') + ASKS
    file = make_experiment(FINE + watched, dropout=0.1)
    plain, recorded = altgrad.run(file)
    assert (recorded.folder / "anomalies").is_dir()
    assert not (plain.folder / "anomalies").exists()
    assert comparable_metrics(plain.folder) == comparable_metrics(recorded.folder)
    for part in ("model", "optimizer", "casts"):
        mine, theirs = (
            load_file(run.folder / "checkpoints" / "step-000012" / f"{part}.safetensors") for run in (recorded, plain)
        )
        assert all(mine[name].equal(theirs[name]) for name in theirs)


def test_a_rate_is_recorded_with_the_state_before_its_step(make_experiment: MakeExperiment) -> None:
    (run,) = altgrad.run(make_experiment(FINE + ASKS, dropout=0.1))
    (event,) = [
        e for e in map(json.loads, (run.folder / "events.jsonl").read_text().splitlines()) if e["event"] == "anomaly"
    ]
    step = event["step"]
    found = replayed(f"runs/small/r@{step}")
    assert found["checkpoint"] == f"anomaly-{step:06d}"
    assert found["exact"] is True


def test_a_step_that_is_none(make_experiment: MakeExperiment) -> None:
    altgrad.run(make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\n'))
    for place in ("0", "13", "best"):
        status, said = altgrad_here("replay", f"runs/small/r@{place}")
        assert status == 2
        assert f"a step of this run is a number from 1 to 12, got '{place}'" in said
