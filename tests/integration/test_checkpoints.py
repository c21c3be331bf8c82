"""Checkpoints of real runs: their weights in a plain model, a plan of which are kept, the hashes in the log."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import torch
from altgrad_gpt.plugin import GPTOptions
from altgrad_gpt.plugin import build as build_gpt
from helpers import MakeExperiment, altgrad_cli
from safetensors.torch import load_file

import altgrad_core as altgrad

RUN = """
[[run]]
name = "r"
recipe = { base = "e5m2", scaling = { kind = "delayed", history = 4 } }
checkpoint = { every = 5, keep = 1, keep_every = 3 }
[[sink]]
kind = "csv"
"""


def checkpoint_events(folder: Path) -> list[dict[str, object]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "checkpoint"]


def test_hashes_weights_and_leftovers(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(RUN, dropout=0.1)
    (run,) = altgrad.run(file, overrides=["train.eval_every=0"])
    straight = {event["step"]: event["state_hash"] for event in checkpoint_events(run.folder)}
    assert list(straight) == [3, 5, 6, 9, 10, 12], "every 5, every 3, and the last"
    kept = sorted(path.name for path in (run.folder / "checkpoints").glob("step-*"))
    assert kept == ["step-000003", "step-000006", "step-000009", "step-000012"]

    weights = tmp_path / "weights.safetensors"
    done = altgrad_cli("checkpoints", run.folder, "--weights", weights)
    assert done.returncode == 0, done.stderr
    model = build_gpt(GPTOptions(n_layer=2, n_head=2, n_embd=32, block_size=32, dropout=0.1), 257)
    model.load_state_dict(load_file(weights))
    saved = load_file(run.folder / "checkpoints" / "step-000012" / "model.safetensors")
    assert any("amax_history" in name for name in saved)
    assert all(torch.equal(parameter, saved[name]) for name, parameter in model.named_parameters())

    # The run is cut back to step 9, in the middle of a save; somebody else seems to hold it, then nobody does.
    shutil.rmtree(run.folder / "checkpoints" / "step-000012")
    half = run.folder / "checkpoints" / ".saving-step-000010"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    lines = (run.folder / "events.jsonl").read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if '"event": "metrics", "step": 10' in line)
    (run.folder / "events.jsonl").write_text("".join(lines[:end]))
    with (run.folder / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = altgrad_cli("run", file, "--set", "train.eval_every=0")
        assert refused.returncode == 2, refused.stdout
        assert half.exists(), "while another holds the run, its half-written checkpoint is left alone"
    (run,) = altgrad.run(file, overrides=["train.eval_every=0"])
    assert run.status == "done"
    assert not half.exists()
    events = checkpoint_events(run.folder)
    (resumed,) = [event for event in events if event["kind"] == "resumed"]
    assert (resumed["step"], resumed["state_hash"]) == (9, straight[9])
    assert {event["step"]: event["state_hash"] for event in events} == straight
    assert [event["step"] for event in run.checkpoints] == list(straight)


def test_a_pickle_as_the_newest_checkpoint(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """The whole way through `altgrad run`: refused, named, the one before is used, and nothing runs."""
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\n')
    (run,) = altgrad.run(file)
    log = run.folder / "events.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"done"' not in line))

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "boom",))

    torch.save({"model": Bomb()}, run.folder / "checkpoints" / "step-000012" / "model.pt")
    (again,) = altgrad.run(file)
    assert again.status == "done"
    assert not (tmp_path / "boom").exists()
    said = [json.loads(line) for line in log.read_text().splitlines() if '"level": "warning"' in line]
    assert any("step-000012 is refused: it holds 'model.pt'" in event["message"] for event in said)
    assert again.metrics("train/loss") == run.metrics("train/loss")
