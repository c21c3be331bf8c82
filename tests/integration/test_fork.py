"""``altgrad fork``: the same weights, something else from here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from altgrad_checkpoint.local import LocalBackend
from helpers import MakeExperiment, altgrad_here, comparable_metrics, state_hash

import altgrad_core as altgrad
from altgrad_core.experiments.config import dump_run
from altgrad_core.experiments.folder import RunFolder, hold
from altgrad_core.experiments.fork import bring_start, parse_moment, plan_fork
from altgrad_core.experiments.worker import execute
from altgrad_core.files import write_whole
from altgrad_core.training.checkpoint import load_checkpoint

RUNS = """
[[run]]
name = "parent"
baseline = true
recipe = { base = "e5m2", scaling = { kind = "delayed", history = 4 }, gradient = { format = "e5m2", rounding = "stochastic" } }
[[sink]]
kind = "csv"
"""
EXPLODES = """
[[run]]
name = "parent"
recipe = "e4m3fn"
alerts = { nan_patience = 3 }
train = { learning_rate = 1e30, min_learning_rate = 1e30, warmup_steps = 0, steps = 50, grad_clip = 0.0, eval_every = 0 }
"""
ASKS = """
[[run]]
name = "parent"
recipe = "e5m2"
alerts = { bit_stall = { threshold = 0.0, action = "checkpoint" } }
"""


@pytest.fixture
def parent(make_experiment: MakeExperiment, tmp_path: Path) -> Path:
    file = make_experiment(RUNS, dropout=0.1)
    (run,) = altgrad.run(file)
    assert run.status == "done"
    return tmp_path / "runs" / "small" / "parent"


def fork(moment: str, name: str, *settings: str) -> str:
    options = [option for setting in settings for option in ("--set", setting)]
    status, said = altgrad_here("fork", moment, "--name", name, *options)
    assert status == 0, said
    return said


def test_a_fork_that_changes_nothing_repeats_its_parent_bit_for_bit(parent: Path) -> None:
    said = fork("runs/small/parent@8", "same")
    run = altgrad.load_run(parent.parent / "same")
    assert run.status == "done"
    assert run.metrics("train/loss")[0] == [9, 10, 11, 12]
    theirs = comparable_metrics(parent)
    for name, (steps, values) in comparable_metrics(run.folder).items():
        expected = dict(zip(*theirs[name], strict=True))
        assert {s: v for s, v in zip(steps, values, strict=True) if s > 8} == {s: expected[s] for s in steps if s > 8}
    assert state_hash(run.folder, "step-000012") == state_hash(parent, "step-000012")
    assert "same is a fork of small/parent after step 8." in said
    assert "is a fork of small/parent after step 8" in (parent.parent / "report.html").read_text()
    lineage = run.config["fork"]
    assert (lineage["run"], lineage["step"], lineage["checkpoint"]) == ("small/parent", 8, "step-000008")
    assert lineage["state_hash"] == state_hash(parent, "step-000008") == state_hash(run.folder, "start-000008")
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert {int(row.split(",")[0]) for row in rows[1:]} == {8, 9, 10, 11, 12}, "8: the evaluation that it begins with"


def test_another_recipe_from_here(parent: Path) -> None:
    options = ("--name", "other", "--recipe", "bf16", "--set", "train.steps=16")
    status, said = altgrad_here("fork", "runs/small/parent@latest", *options)
    assert status == 0, said
    assert "trains 4 steps, 13 to 16, recipe bf16" in said
    run = altgrad.load_run(parent.parent / "other")
    steps, losses = run.metrics("val/loss")
    assert steps[0] == 12
    # BF16 at the parent's weights: near, and not the same.
    before = altgrad.load_run(parent).metrics("val/loss")[1][-1]
    assert losses[0] == pytest.approx(before, rel=0.01)
    assert losses[0] != before
    assert run.config["recipe"]["name"] == "bf16"


def test_what_starts_anew_is_said(parent: Path) -> None:
    fork("runs/small/parent@8", "seed", "seed=7")
    longer = 'recipe={ base = "e5m2", weight_storage = "e5m2", scaling = { kind = "delayed", history = 7 } }'
    assert "Scaling state that the other recipe does not have starts anew" in fork(
        "runs/small/parent@8", "storage", longer
    )
    said = [event["message"] for event in events(parent.parent / "seed") if event["event"] == "log"]
    assert any("Batches and dropout are those of seed 7 from here on." in message for message in said)
    assert not any("Scaling state" in message for message in said)
    assert (
        altgrad.load_run(parent.parent / "seed").metrics("train/loss")[1]
        != (altgrad.load_run(parent).metrics("train/loss")[1][8:])
    )
    run = altgrad.load_run(parent.parent / "storage")
    from safetensors.torch import load_file

    weight = load_file(run.folder / "checkpoints" / "step-000012" / "model.safetensors")["blocks.0.mlp.up.weight"]
    assert len(weight.abs().unique()) <= 124, "only E5M2 magnitudes"


@pytest.mark.slow
def test_options_of_the_optimizer_are_the_forks_own(parent: Path) -> None:
    fork("runs/small/parent@8", "same")
    fork("runs/small/parent@8", "decay", "train.weight_decay=0.5")
    fork("runs/small/parent@8", "betas", 'train.optimizer={ kind = "adamw", beta2 = 0.5 }')
    same, *others = (
        altgrad.load_run(parent.parent / name).metrics("train/loss")[1] for name in ("same", "decay", "betas")
    )
    for losses in others:
        assert losses[0] == same[0]
        assert losses[-1] != same[-1]


def test_the_same_command_again_says_that_it_is_done(parent: Path) -> None:
    fork("runs/small/parent@8", "same")
    shutil.rmtree(parent / "checkpoints")
    shutil.copytree(parent.parent / "same" / "checkpoints" / "start-000008", parent / "checkpoints" / "step-000008")
    assert "is done already" in fork("runs/small/parent@8", "same")
    status, said = altgrad_here("fork", "runs/small/parent@8", "--name", "same", "--set", "train.learning_rate=1e-5")
    assert status == 2
    assert "train.learning_rate: 0.003 -> 1e-05" in said


def interrupt(moment: str, name: str, *settings: str, steps: int | None) -> RunFolder:
    """Begin a fork as the command does and end it after that many steps; None: before its worker says anything."""
    config = plan_fork(parse_moment(moment), name, settings)
    folder = RunFolder(Path("runs/small") / name)
    bring_start(config, folder)
    write_whole(folder.config, dump_run(config))
    if steps is not None:
        assert execute(folder, "cpu", stop_at=steps) == 128
    return folder


def test_an_interrupted_fork_goes_on_without_its_parent(parent: Path) -> None:
    longer = "train.steps=16"
    fork("runs/small/parent@8", "straight", longer)
    own = interrupt("runs/small/parent@8", "f", longer, steps=10)
    pending = interrupt("runs/small/parent@8", "pending", longer, steps=None)
    parent.rename(parent.parent / "gone")
    status, said = altgrad_here("fork", "runs/small/parent@12", "--name", "f", "--set", longer)
    assert (status, "is a fork of small/parent after step 8 (step-000008), not of runs/small/parent@12" in said) == (
        2,
        True,
    )
    status, said = altgrad_here("fork", "runs/small/other@8", "--name", "f", "--set", longer)
    assert (status, "not of runs/small/other@8" in said) == (2, True)
    status, said = altgrad_here("fork", "runs/small/parent@8", "--name", "f")
    assert (status, "train.steps: 16 -> 12" in said) == (2, True)
    for folder in (own, pending):
        fork("runs/small/parent@8", folder.path.name, longer)
        assert folder.status() == "done"
        assert state_hash(folder.path, "step-000016") == state_hash(parent.parent / "straight", "step-000016")


@pytest.mark.slow
def test_latest_is_where_the_fork_began_although_the_parent_went_on(parent: Path) -> None:
    own = interrupt("runs/small/parent@latest", "f", "train.steps=16", steps=14)
    shutil.copytree(parent / "checkpoints" / "step-000008", parent / "checkpoints" / "step-000020")
    (parent / "checkpoints" / "latest").write_text("step-000020\n")
    fork("runs/small/parent@latest", "f", "train.steps=16")
    assert (own.status(), altgrad.load_run(own.path).config["fork"]["step"]) == ("done", 12)


def test_a_stale_start_is_replaced_and_never_trained_from(parent: Path) -> None:
    own = interrupt("runs/small/parent@8", "f", steps=None)
    fork("runs/small/parent@10", "f")
    run = altgrad.load_run(own.path)
    assert (run.config["fork"]["step"], run.metrics("train/loss")[0]) == (10, [11, 12])
    assert [path.name for path in own.checkpoints.glob("start-*")] == ["start-000010"]
    assert state_hash(own.path, "step-000012") == state_hash(parent, "step-000012")


def test_a_start_of_another_state_is_refused(parent: Path) -> None:
    own = interrupt("runs/small/parent@8", "f", steps=None)
    shutil.rmtree(own.checkpoints / "start-000008")
    assert execute(own, "cpu") == 1
    assert "its copy of the parent's checkpoint, start-000008, is missing" in own.events.read_text()
    shutil.copytree(parent / "checkpoints" / "step-000010", own.checkpoints / "start-000008")
    assert execute(own, "cpu") == 1
    assert "start-000008, has another state than run.toml says" in own.events.read_text()


@pytest.mark.slow
def test_a_foreign_folder_among_the_checkpoints_is_no_checkpoint(parent: Path) -> None:
    (parent / "checkpoints" / "old copy").mkdir()
    fork("runs/small/parent@8", "f")
    status, said = altgrad_here("fork", "runs/small/parent@old copy", "--name", "g")
    assert (status, "has no checkpoint 'old copy'; there are: step-000008, " in said) == (2, True)


def test_a_fork_needs_only_its_own_run(parent: Path) -> None:
    """The parent's experiment may be trained meanwhile; the same fork may not."""
    with hold(parent.parent / ".lock", "The experiment"):
        fork("runs/small/parent@8", "f")
    with hold(parent.parent / ".g.lock", "The fork"):
        status, said = altgrad_here("fork", "runs/small/parent@8", "--name", "g")
    assert (status, "The fork runs/small/g is held by pid " in said) == (2, True)


def test_alerts_that_ended_the_parent_start_anew(make_experiment: MakeExperiment) -> None:
    """One alert is raised once an episode, and the parent's went on to its end."""
    altgrad.run(make_experiment(EXPLODES))
    said = fork("runs/small/parent@latest", "f")
    run = altgrad.load_run("runs/small/f")
    assert "The alerts start anew: one of them ended the other run." in said
    assert run.status == "stopped"
    assert run.checkpoints[-1]["step"] == run.config["fork"]["step"] + 3


@pytest.mark.slow
def test_what_alerts_asked_for_is_counted_anew(make_experiment: MakeExperiment) -> None:
    altgrad.run(make_experiment(ASKS))
    fork("runs/small/parent@8", "f")
    fork("runs/small/parent@8", "other", "alerts.overflow=0.5")
    theirs, ours, others = (
        load_checkpoint(LocalBackend(Path("runs/small", name, "checkpoints")), "step-000010").state["alerts"]
        for name in ("parent", "f", "other")
    )
    assert (theirs["saved"]["bit_stall"], ours["saved"]["bit_stall"]) == (1, 0)
    assert {**ours, "saved": None} == {**theirs, "saved": None}, "counts and windows go on"
    assert theirs["held"]["bit_stall"] == 6
    assert others["held"]["bit_stall"] == 1
    said = Path("runs/small/other/events.jsonl").read_text()
    assert "The alerts start anew: their options are others." in said


WRONG = [
    ("runs/small/parent", "x", [], "Expected RUN@STEP"),
    ("runs/small/nobody@8", "x", [], "There is no run in runs/small/nobody"),
    ("runs/small/parent@7", "x", [], "has no checkpoint 'step-000007'; there are: "),
    ("runs/small/parent@8", "parent", [], "--name: the fork needs a name other than its parent's"),
    ("runs/small/parent@8", "a/b", [], "expected a name that can be a folder"),
    ("runs/small/parent@12", "x", [], "nothing to train: it begins after step 12 and train.steps is 12"),
    ("runs/small/parent@8", "x", ['reciep="bf16"'], "Did you mean 'recipe'"),
    ("runs/small/parent@8", "x", ["other:train.steps=9"], "there is one run only"),
]


def test_wrong_input_is_one_sentence(parent: Path) -> None:
    for moment, name, settings, expected in WRONG:
        options = [option for setting in settings for option in ("--set", setting)]
        status, said = altgrad_here("fork", moment, "--name", name, *options)
        assert (status, expected in said) == (2, True), said
        assert not (parent.parent / "x").exists()


def test_another_model_is_refused(parent: Path) -> None:
    status, said = altgrad_here("fork", "runs/small/parent@8", "--name", "wide", "--set", "model.n_embd=64")
    assert status == 2
    assert "The checkpoint is that of another model: " in said
    assert "[257, 64], was [257, 32]" in said
    assert not (parent.parent / "wide").exists()


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
