"""`altgrad run` as a user gives it: what it makes, what it skips, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import MakeExperiment, altgrad_cli

import altgrad_core as altgrad

RUNS = """
[[run]]
name = "bf16"
baseline = true
recipe = "bf16"
[[run]]
name = "{recipe}-{scaling}"
matrix = { recipe = ["e5m2", "hybrid"], "recipe.scaling" = ["current"] }
"""


def test_everything_a_run_leaves(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(RUNS, launcher="process")
    done = altgrad_cli("run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for text in ("34,720 parameters", "tokenizer  bytes", "tok/s", "validation loss", "hybrid-current", "report.html"):
        assert text in done.stdout, text
    folder = tmp_path / "runs" / "small"
    assert (folder / "report.html").exists()
    run = altgrad.load_run(folder / "e5m2-current")
    assert run.status == "done"
    steps, losses = run.metrics("train/loss")
    assert steps == list(range(1, 13))
    assert losses[-1] < losses[0]
    assert run.metrics("val/loss")[0] == [0, 5, 10, 12]
    names = set(run.metric_names())
    layer = "blocks.1.mlp.up"
    for metric in ("overflow_rate", "underflow_rate", "sqnr_db", "nan_count"):
        assert {metric, *(f"{metric}/{layer}.{operand}" for operand in ("input", "weight", "grad_output"))} <= names
    for metric in (
        "grad_norm_l2",
        "grad_snr",
        "grad_cos_sim",
        "shadow_grad_snr_db",
        "bit_stall_rate",
        "zero_update_frac",
    ):
        assert {metric, f"{metric}/{layer}.weight"} <= names
    assert run.metrics("overflow_rate")[0] == [1, 2, 4, 6, 8, 10, 12]
    assert run.metrics("grad_cos_sim")[0] == [1, 3, 6, 9, 12]
    assert all(0.9 < value <= 1 for value in run.metrics("grad_cos_sim")[1])
    checkpoints = sorted(path.name for path in (folder / "e5m2-current" / "checkpoints").iterdir())
    assert checkpoints[:2] == ["best", "latest"]
    assert (folder / "e5m2-current" / "checkpoints" / "latest").read_text().strip() == "step-000012"
    environment = json.loads((folder / "bf16" / "env.json").read_text())
    assert environment["device"] == "cpu"

    again = altgrad_cli("run", file)
    assert again.returncode == 0
    assert "are finished already" in again.stdout
    assert "summary" not in again.stdout, "nothing was trained"
    assert "* the baseline" in again.stdout, "the table is explained every time"
    assert altgrad.load_run(folder / "bf16").stretches == 1

    # Which run is the baseline decides nothing of the training: the others are compared with another run, that is all.
    file.write_text(file.read_text().replace("baseline = true\n", ""))
    moved = altgrad_cli("run", file, "--set", "hybrid-current:baseline=true")
    assert moved.returncode == 0, moved.stderr
    assert "hybrid-current *" in moved.stdout

    changed = altgrad_cli("run", file, "--set", "train.steps=13")
    assert changed.returncode == 2
    assert "train.steps: 12 -> 13" in changed.stderr
    assert "--fresh" in changed.stderr
    assert altgrad.load_run(folder / "bf16").metrics("train/loss")[0][-1] == 12

    fresh = altgrad_cli("run", file, "--set", "bf16:train.steps=13", "--only", "bf16", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert altgrad.load_run(folder / "bf16").metrics("train/loss")[0][-1] == 13
    (old,) = (folder / ".old").iterdir()
    assert altgrad.load_run(old).metrics("train/loss")[0][-1] == 12


def test_fresh_moves_nothing_aside_before_all_is_right(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\n')
    altgrad.run(file)
    for wrong in (["--set", 'data.path="nowhere"'], ["--device", "cuda:99"], ["--device", "tpu"]):
        done = altgrad_cli("run", file, "--fresh", *wrong)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "nowhere" in done.stderr or "--device" in done.stderr
        assert altgrad.load_run(tmp_path / "runs" / "small" / "r").status == "done"
    assert not (tmp_path / "runs" / "small" / ".old").exists()


def test_checkpoints_without_a_configuration_are_not_gone_on_from(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\n')
    altgrad.run(file)
    folder = tmp_path / "runs" / "small" / "r"
    (folder / "run.toml").unlink()
    (folder / "events.jsonl").write_text("")
    done = altgrad_cli("run", file)
    assert done.returncode == 2
    assert "no run.toml" in done.stderr
    assert "--fresh" in done.stderr
    assert altgrad_cli("run", file, "--fresh").returncode == 0


def test_debug_shows_the_traceback_wherever_it_stands(make_experiment: MakeExperiment) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m3x"\n')
    for arguments in (("--debug", "run", file), ("run", file, "--debug")):
        done = altgrad_cli(*arguments)
        assert "Traceback" in done.stderr
        assert "e5m3x" in done.stderr


def test_same_config_twice_and_two_jobs_give_the_same_bits(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(RUNS, launcher="process", dropout=0.1)
    one = altgrad_cli("run", file, "--runs", "one")
    two = altgrad_cli("run", file, "--runs", "two", "--jobs", "2")
    assert one.returncode == two.returncode == 0
    for name in ("bf16", "e5m2-current", "hybrid-current"):
        runs = [altgrad.load_run(tmp_path / where / "small" / name) for where in ("one", "two")]
        for metric in ("train/loss", "val/loss", "grad_cos_sim", "bit_stall_rate"):
            assert runs[0].metrics(metric) == runs[1].metrics(metric)


def test_one_failed_run_leaves_the_others_going(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    broken = '[[run]]\nname = "broken"\nrecipe = "bf16"\n[[run]]\nname = "good"\nrecipe = "bf16"\n'
    file = make_experiment(broken, launcher="process")
    (tmp_path / "runs" / "small" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "broken" / "checkpoints").write_text("a file where a folder should be")
    done = altgrad_cli("run", file)
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert "Could not write the checkpoint" in done.stdout
    assert "--retry-failed" in done.stdout
    assert altgrad.load_run(tmp_path / "runs" / "small" / "good").status == "done"
    broken_run = altgrad.load_run(tmp_path / "runs" / "small" / "broken")
    assert broken_run.status == "failed"
    assert len(broken_run.metrics("train/loss")[0]) >= 4

    again = altgrad_cli("run", file)
    assert again.returncode == 1
    assert "--retry-failed" in again.stdout
    (tmp_path / "runs" / "small" / "broken" / "checkpoints").unlink()
    retried = altgrad_cli("run", file, "--retry-failed")
    assert retried.returncode == 0, retried.stdout
    assert altgrad.load_run(tmp_path / "runs" / "small" / "broken").status == "done"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("train.stepz=3", "Did you mean 'steps'"),
        ("steps=3", "It belongs under train: train.steps"),
        ('train.steps="12"', "train.steps"),
        ("train.steps=12.7", "train.steps"),
        ('recipe="e5m3x"', "e5m3x"),
        ('recipe.scaling="curent"', "Did you mean 'current'"),
        ('data.path="nowhere"', "nowhere"),
        ('data.path="empty"', "empty"),
        ("model.block_size=100000", "block_size"),
        ('model.kind="gtp"', "Did you mean 'gpt'"),
        ('data.tokenizer="gpt22"', "gpt22"),
        ("model.n_embd=31", "multiple of n_head"),
        (
            'recipe={base="mxfp4",backend="native"}',
            "The run 'r' cannot train: The layer 'blocks.0.attn.qkv' cannot be native",
        ),
    ],
)
def test_wrong_input_is_one_error_with_status_2(
    make_experiment: MakeExperiment, tmp_path: Path, setting: str, text: str
) -> None:
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "e5m2"\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    done = altgrad_cli("run", file, "--set", setting)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/small/r/events.jsonl"))


def test_the_error_of_a_misspelt_key_has_its_place(make_experiment: MakeExperiment) -> None:
    file = make_experiment('[[run]]\nname = "r"\nreciep = "e5m2"\n')
    line = file.read_text().splitlines().index('reciep = "e5m2"') + 1
    done = altgrad_cli("run", file)
    assert done.returncode == 2
    assert f"small.toml:{line}:1" in done.stderr
    assert "Did you mean 'recipe'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nan_saves_an_anomaly_and_patience_stops(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """A learning rate that explodes: what AltGrad says must match the alert table."""
    file = make_experiment(
        '[[run]]\nname = "r"\nrecipe = "fp32"\nalerts = { nan_patience = 3 }\n'
        "train = { learning_rate = 1e30, min_learning_rate = 1e30, warmup_steps = 0, steps = 50, grad_clip = 0.0 }\n"
    )
    (run,) = altgrad.run(file)
    assert run.status == "stopped"
    (first, *_, last) = [alert for alert in run.alerts if alert["alert"].startswith("nan")]
    assert (first["alert"], first["action"], last["alert"], last["action"]) == (
        "nan",
        "checkpoint",
        "nan_patience",
        "stop",
    )
    assert (tmp_path / "runs" / "small" / "r" / "checkpoints" / f"anomaly-{first['step']:06d}").is_dir()
    assert run.metrics("train/loss")[0][-1] == last["step"] < 50
    assert run.reason == last["message"]
    assert run.metrics("train/skipped_updates")[1][-1] == 3
