"""``altgrad verify-resume`` finds nothing where there is nothing, and something where there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import MakeExperiment, altgrad_cli

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


def test_at_is_below_steps(make_experiment: MakeExperiment) -> None:
    done = altgrad_cli("verify-resume", make_experiment('[[run]]\nname = "r"\n'), "--steps", 4, "--at", 4)
    assert done.returncode == 2
    assert "--at is below --steps, 4; got 4." in done.stderr
