"""``altgrad verify-resume`` finds nothing where there is nothing, and something where there is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import MakeExperiment, altgrad_cli

from altgrad_core.experiments import verify_resume
from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.verify_resume import Resumption
from altgrad_core.experiments.worker import execute
from altgrad_core.training.engine import Engine

RUNS = """
[[run]]
name = "everything"
[run.recipe]
base = "e5m2"
scaling = { kind = "delayed", history = 4 }
gradient = { format = "e5m2", rounding = "stochastic" }
weight_storage = { format = "e5m6", rounding = "stochastic" }
optimizer_state = "e5m6"
saved_activations = "e5m2"
"""

FORGETS = '''
from altgrad_core import hookimpl


def build(options):
    """A probe that changes the training by how often it was called, and does not say so in its state."""
    from altgrad_core.training.probes import Probe

    class Forgets(Probe):
        calls = 0

        def after_backward(self, context):
            self.calls += 1
            context.parameters["blocks.0.mlp.up.weight"].grad.mul_(1 + self.calls / 1000)

    return Forgets(1)


@hookimpl
def altgrad_register_probes(register):
    register("forgets", build)
'''


def test_a_resumed_run_is_the_same(make_experiment: MakeExperiment) -> None:
    file = make_experiment(RUNS, dropout=0.1)
    done = altgrad_cli("verify-resume", file, "--steps", 8, "--at", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("everything: 8 steps straight, and interrupted after 5: ")
    assert line.endswith("compared, all the same, bit for bit")


def test_a_probe_with_a_memory_that_it_does_not_save_is_caught(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    package.mkdir()
    (package / "altgrad_forgets.py").write_text(FORGETS)
    info = package / "altgrad_forgets-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: altgrad-forgets\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[altgrad]\nforgets = altgrad_forgets\n")
    monkeypatch.setenv("PYTHONPATH", str(package))
    file = make_experiment('[[run]]\nname = "r"\nrecipe = "bf16"\nprobes = { forgets = true }\n')
    done = altgrad_cli("verify-resume", file, "--steps", 6)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFER" in done.stdout
    assert "model/blocks.0.mlp.up.weight: " in done.stdout
    assert "elements differ" in done.stdout


SINK = '[[sink]]\nkind = "csv"\n'


def verify(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Resumption:
    """As ``altgrad verify-resume`` does it, with the worker's code in this process, so that it can be broken."""

    def here(run: RunFolder, device: str, stop_at: int | None = None) -> None:
        assert execute(run, device, None, stop_at) in (0, 128)

    monkeypatch.setattr(verify_resume, "_execute", here)
    config = load_experiment(file).runs[0]
    return verify_resume.verify_resume(config, folder, steps=6, interrupt_at=3, device="cpu")


def test_a_forgotten_best_is_caught(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_experiment('[[run]]\nname = "r"\ntrain = { eval_every = 2, learning_rate = 3.0 }\n' + SINK)
    found = verify(file, tmp_path / "sound", monkeypatch)
    assert found.differences == ()
    monkeypatch.setattr(Engine, "_load_best", lambda self, best: None)
    found = verify(file, tmp_path / "broken", monkeypatch)
    assert any(line.startswith("best/") for line in found.differences), found.differences


def test_a_metric_that_comes_twice_is_caught(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the events and in the rows of the CSV sink."""
    evaluate = Engine.evaluate

    def twice(self: Engine) -> float:
        if self.step_number == 6 and "resumed" in str(self.recorder.folder):
            evaluate(self)
        return evaluate(self)

    monkeypatch.setattr(Engine, "evaluate", twice)
    found = verify(make_experiment('[[run]]\nname = "r"\n' + SINK), tmp_path / "doubled", monkeypatch)
    assert [line for line in found.differences if "val/loss" in line] == [
        "metric val/loss at step 6, for the 2. time is only in the resumed training",
        "metrics.csv: metric val/loss at step 6, for the 2. time is only in the resumed training",
    ]


def test_the_order_counts() -> None:
    one = {"metric a at step 1": 1.0, "metric b at step 1": 2.0}
    other = dict(reversed(one.items()))
    assert list(verify_resume._differences(one, other)) == ["the order: metric a at step 1 against metric b at step 1"]
    assert list(verify_resume._differences(one, dict(one))) == []


def test_no_training_outlives_it(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = make_experiment('[[run]]\nname = "r"\n')
    command = [sys.executable, "-m", "altgrad_core.cli", "verify-resume", str(file), "--steps", "100000"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (running := list(tmp_path.glob("altgrad-verify-resume-*/r/straight/events.jsonl"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.terminate()
    started.wait()
    while RunFolder(running[0].parent).holder() is not None:
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def test_at_is_below_steps(make_experiment: MakeExperiment) -> None:
    done = altgrad_cli("verify-resume", make_experiment('[[run]]\nname = "r"\n'), "--steps", 4, "--at", 4)
    assert done.returncode == 2
    assert "--at is below --steps, 4; got 4." in done.stderr
