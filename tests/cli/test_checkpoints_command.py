"""``altgrad checkpoints``."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
import torch
import typer
from altgrad_checkpoint.local import LocalBackend
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from altgrad_core.cli.checkpoints import checkpoints
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import dump_run, load_experiment
from altgrad_core.training.checkpoint import Checkpoints

app = typer.Typer()
app.command()(checkpoints)

EXPERIMENT = """
[experiment]
name = "e"
[[run]]
name = "r"
recipe = "hybrid"
checkpoint = { every = 2, keep = 2, keep_every = 4 }
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has checkpoints of every kind."""
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    (config,) = load_experiment(tmp_path / "e.toml").runs
    folder = tmp_path / "runs" / "e" / "r"
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(dump_run(config))
    store = Checkpoints(LocalBackend(folder / "checkpoints"), 2, print, keep_every=4)
    events = [{"time": 1.0, "event": "status", "status": "running"}]
    for step in range(1, 11):
        if kind := {6: "best", 8: "step", 10: "final"}.get(step):
            facts = {"kind": kind, "path": f"checkpoints/step-{step:06d}"}
            events.append({"time": 1.0 + step, "event": "checkpoint", "step": step, **facts})
        values = {"train/loss": 5 - step / 10} | ({"val/loss": 4.5} if step == 6 else {})
        events.append({"time": 1.0 + step, "event": "metrics", "step": step, "values": values})
        weight = torch.full((2, 2), float(step))
        state = {
            "model": {"w": weight, "tied": weight, "lm.input_cast.scaling.amax_history": torch.ones(3)},
            "step": step,
        }
        if step == 3:
            store.save(step, state, kind="anomaly", notes={"sinks": {}})
        elif step % 2 == 0:
            store.save(step, state, kind="step", notes={"sinks": {}}, best="step-000006" if step >= 6 else None)
        store.settle(wait=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})


def test_table(run: Path) -> None:
    result = invoke(run)
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.splitlines()
    assert header.split() == [
        "checkpoint",
        "kind",
        "kept",
        "saved",
        "size",
        "loss",
        "val",
        "loss",
        "state",
        "pointers",
        "files",
    ]
    cells = [line.split() for line in lines if "-0000" in line]
    assert [" ".join(c[:3]) for c in cells] == [
        "anomaly-000003 anomaly for", "step-000004 step for", "step-000006 best best", "step-000008 step for",
        "step-000010 final newest",
    ]  # fmt: skip
    assert cells[2][7:9] == ["4.4000", "4.5000"]
    assert cells[2][-3:] == ["best", "sizes", "ok"]
    assert cells[4][-3:] == ["latest", "sizes", "ok"]
    assert lines[-1] == "Manifests and sizes were checked; --verify reads every byte."
    assert cells[4][-4] == LocalBackend(run / "checkpoints").describe("step-000010").state_hash[:12]


def test_verify(run: Path) -> None:
    result = invoke(run, "--verify")
    assert result.exit_code == 0
    assert "All 5 checkpoints are whole." in result.stdout
    path = run / "checkpoints" / "step-000006" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert invoke(run).exit_code == 0, "without --verify only manifests and sizes are looked at"
    result = invoke(run, "--verify")
    assert result.exit_code == 1
    assert "step-000006 is damaged: model.safetensors has another sha256" in result.stdout
    assert [line.split()[-1] for line in result.stdout.splitlines() if line.startswith(("step", "anom"))] == [
        "yes", "yes", "damaged", "yes", "yes",
    ]  # fmt: skip


def test_sizes_are_checked_always(run: Path) -> None:
    path = run / "checkpoints" / "step-000006" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (run / "checkpoints" / "step-000008" / "state.json").unlink()
    result = invoke(run)
    assert result.exit_code == 1
    assert "step-000006 is damaged: model.safetensors has" in result.stdout
    assert "step-000008 is damaged: state.json is missing" in result.stdout


def test_checkpoint_alone_is_refused(run: Path) -> None:
    result = invoke(run, "--checkpoint", "best")
    assert isinstance(result.exception, AltgradError)
    assert "needs --weights FILE" in str(result.exception)


def test_a_lost_pointer_and_a_lost_manifest(run: Path) -> None:
    (run / "checkpoints" / "best").write_text("step-000099\n")
    (run / "checkpoints" / "step-000010" / "manifest.json").unlink()
    result = invoke(run)
    assert result.exit_code == 1
    assert "The pointer best names step-000099, which is not there." in result.stdout
    assert "step-000010 is damaged: manifest.json is missing" in result.stdout


def test_json(run: Path) -> None:
    found = json.loads(invoke(run, "--json", "--verify").stdout)
    assert found["verified"] is True
    assert found["lost_pointers"] == {}
    assert [c["step"] for c in found["checkpoints"]] == [3, 4, 6, 8, 10]
    best = found["checkpoints"][2]
    assert (best["kind"], best["best"], best["latest"], best["problem"]) == ("best", True, False, None)
    assert (best["loss"], best["val_loss"], best["path"]) == (4.4, 4.5, "checkpoints/step-000006")
    assert len(best["state_hash"]) == 64


@pytest.mark.parametrize(
    ("options", "name", "step"), [([], "step-000010", 10), (["--checkpoint", "best"], "step-000006", 6),
                                  (["--checkpoint", "anomaly-000003"], "anomaly-000003", 3),
                                  (["--checkpoint", "6"], "step-000006", 6)],
)  # fmt: skip
def test_weights(run: Path, tmp_path: Path, options: list[str], name: str, step: int) -> None:
    file = tmp_path / "weights.safetensors"
    result = invoke(run, "--weights", file, *options)
    assert result.exit_code == 0, result.output
    assert f"the weights of {name}" in result.stdout
    weights = load_file(file)
    assert set(weights) == {"w", "tied"}, "what casts keep for themselves is no weight"
    assert torch.equal(weights["w"], torch.full((2, 2), float(step)))
    assert torch.equal(weights["tied"], weights["w"])
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    assert {k: facts[k] for k in ("format", "experiment", "run", "recipe", "step", "checkpoint")} == {
        "format": "pt", "experiment": "e", "run": "r", "recipe": "hybrid", "step": str(step), "checkpoint": name,
    }  # fmt: skip
    assert json.loads(facts["number_formats"]) == {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"}
    assert json.loads(facts["model"])["kind"] == "gpt"
    before = file.read_bytes()
    again = invoke(run, "--weights", file)
    assert isinstance(again.exception, AltgradError)
    assert "exists and is not overwritten" in str(again.exception)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--checkpoint", "step-000005"], "Known: anomaly-000003, best, latest, step-000004"),
        (["--checkpoint", "5"], "Unknown checkpoint 'step-000005'"),
        (["--checkpoint", "../x"], "Unknown checkpoint '../x'"),
        (["--checkpoint", "best"], "The pointer best is not set. Checkpoints: anomaly-000003, step-000004"),
    ],
)
def test_weights_of_what_is_not_there(run: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    (run / "checkpoints" / "best").unlink()
    result = invoke(run, "--weights", tmp_path / "w", *arguments)
    assert isinstance(result.exception, AltgradError)
    assert text in str(result.exception)
    assert not (tmp_path / "w").exists()


def test_weights_of_a_damaged_one_and_to_nowhere(run: Path, tmp_path: Path) -> None:
    result = invoke(run, "--weights", tmp_path / "no" / "w")
    assert isinstance(result.exception, AltgradError)
    assert f"There is no folder {tmp_path / 'no'}" in str(result.exception)
    (run / "checkpoints" / "step-000010" / "state.json").write_text("{}")
    result = invoke(run, "--weights", tmp_path / "w")
    assert isinstance(result.exception, AltgradError)
    assert "state.json has 2 bytes" in str(result.exception)
    assert not (tmp_path / "w").exists()


def test_while_the_run_is_trained(run: Path) -> None:
    with (run / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (run / "checkpoints" / ".saving-step-000012").mkdir()
        result = invoke(run, "--verify")
        assert result.exit_code == 0
        assert "step-000012" not in result.stdout
        assert (run / "checkpoints" / ".saving-step-000012").exists(), "a save that is going on is left alone"


def test_no_checkpoints_yet(run: Path) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    result = invoke(run)
    assert result.exit_code == 0
    assert "has no checkpoints yet" in result.stdout


def test_a_folder_that_is_no_run(run: Path, tmp_path: Path) -> None:
    for folder, text in ((tmp_path / "nowhere", "there is no such folder"), (run.parent, "name one of them")):
        result = invoke(folder)
        assert isinstance(result.exception, AltgradError)
        assert text in str(result.exception)
