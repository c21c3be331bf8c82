"""NaN, infinity and huge values in activations, weights and gradients, and formats that overflow, do what docs/alerts.md says.

A real engine on a tiny model, in FP32, BF16 and E5M2. Each row asserts the alerts, the skipped updates, the checkpoints,
and how the run ends; and that a run which dies at any step raises, resumed, the alerts of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from altgrad_adamw.plugin import AdamWOptions
from altgrad_adamw.plugin import build as build_adamw
from altgrad_checkpoint.local import LocalBackend
from altgrad_gpt.plugin import GPTOptions
from altgrad_gpt.plugin import build as build_gpt
from altgrad_probes.gradients import GradientsProbe
from altgrad_probes.stability import StabilityProbe
from altgrad_probes.updates import UpdatesProbe
from helpers import MakeExperiment

import altgrad_core as altgrad
from altgrad_core.plugins import Choice
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.training import rng
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.checkpoint import Checkpoints
from altgrad_core.training.config import (
    ALERTS,
    AlertConfig,
    CountRule,
    DivergenceRule,
    NanRule,
    RateRule,
    SpikeRule,
    TrainConfig,
)
from altgrad_core.training.data import TokenData
from altgrad_core.training.engine import Engine, NoSinks
from altgrad_core.training.recorder import FlightRecorder

BAD_STEP = 8
STEPS = 12
RULES = {
    "nan_patience": NanRule(patience=3, action="stop"),
    "loss_spike": SpikeRule(window=10, min_losses=5),
}
Harm = Callable[[Engine], None]


@attrs.define
class Trial:
    """A training, and what it told."""

    engine: Engine
    events: list[dict[str, Any]] = attrs.field(factory=list)

    @property
    def alerts(self) -> list[tuple[int, str, str]]:
        return [(e["step"], e["alert"], e["action"]) for e in self.events if e["event"] == "alert"]

    @property
    def anomalies(self) -> list[str]:
        return [e["name"] for e in self.events if e["event"] == "checkpoint" and e["kind"] == "anomaly"]

    def values(self, step: int) -> dict[str, float]:
        return next(e["values"] for e in self.events if e.get("step") == step and "train/loss" in e.get("values", {}))

    def metric(self, name: str) -> dict[int, float]:
        return {e["step"]: float(e["values"][name]) for e in self.events if name in e.get("values", {})}


def trial(folder: Path, recipe: object = "fp32", *, learning_rate: float = 1e-3, every: int = 0, **rules: Any) -> Trial:
    """Return a training of a GPT of 6,000 parameters; ``every``: steps between checkpoints."""
    rng.seed_all(5)
    resolved = resolve_recipe(recipe)
    model, _ = altgrad.convert(build_gpt(GPTOptions(n_layer=1, n_head=2, n_embd=16, block_size=16), 31), resolved)
    tokens = np.random.default_rng(0).integers(0, 31, 4096, dtype=np.uint16)
    data = TokenData(
        name="random", train=tokens, val=tokens[:512], vocab_size=31, tokenizer="bytes", documents=0, source_sha256="",
        path=folder,
    )  # fmt: skip
    train = TrainConfig(
        steps=STEPS, batch_size=4, eval_every=0, eval_batches=1, learning_rate=learning_rate, optimizer=Choice("adamw")
    )
    events: list[dict[str, Any]] = []
    engine = Engine(
        train=train, block_size=16, seed=5, checkpoint_every=every, recipe=resolved, model=model,
        optimizer=build_adamw(AdamWOptions(), model, learning_rate, 0.1), data=data,
        probes={"gradients": GradientsProbe(1, window=3), "stability": StabilityProbe(1), "updates": UpdatesProbe(1)},
        alerts=AlertWatch(AlertConfig(**{**RULES, "bit_stall": None, **rules})),
        checkpoints=Checkpoints(LocalBackend(folder), 2, print), emit=events.append,
        stop_requested=lambda steps: False, sinks=NoSinks(), device=torch.device("cpu"),
        config={}, recorder=FlightRecorder(folder.parent / "anomalies", lambda steps, until: []),
    )  # fmt: skip
    return Trial(engine, events)


def _now(engine: Engine) -> bool:
    """Tell whether this is the forward or backward pass of the bad step."""
    return engine.model.training and engine.step_number == BAD_STEP - 1


def in_weight(name: str, value: float, *, whole: bool = False) -> Harm:
    """Overwrite an element of a weight, or all, before the bad step; it stays."""

    def harm(engine: Engine) -> None:
        def before_forward(*_: Any) -> None:
            if _now(engine):
                with torch.no_grad():
                    engine.parameters[name].view(-1)[: None if whole else 1] = value

        engine.model.register_forward_pre_hook(before_forward)

    return harm


def in_data(value: float) -> Harm:
    """Make one position of every sequence this number, as a broken batch would, in the bad step only."""

    def harm(engine: Engine) -> None:
        def after_embedding(module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor | None:
            return out.index_fill(1, torch.tensor([3]), value) if _now(engine) else None

        engine.model.token_embedding.register_forward_hook(after_embedding)

    return harm


def in_gradient(value: float) -> Harm:
    """Make a weight's gradient this number in the bad step only."""

    def harm(engine: Engine) -> None:
        def hook(gradient: torch.Tensor) -> torch.Tensor | None:
            return torch.full_like(gradient, value) if _now(engine) else None

        engine.parameters["blocks.0.mlp.up.weight"].register_hook(hook)

    return harm


UP, QKV, NORM = "blocks.0.mlp.up.weight", "blocks.0.attn.qkv.weight", "final_norm.weight"
ONCE = [(8, "nan", "checkpoint")]
FOR_GOOD = [(8, "nan", "checkpoint"), (10, "nan_patience", "stop")]
CASTS = (8, "non_finite", "checkpoint")

TABLE: list[tuple[str, Harm, list[str], list[tuple[int, str, str]], int]] = [
    # where, harm, recipes, alerts, skipped updates
    ("NaN in a weight", in_weight(UP, math.nan), ["fp32", "bf16"], FOR_GOOD, 3),
    ("NaN in a weight", in_weight(UP, math.nan), ["e5m2"], [FOR_GOOD[0], CASTS, FOR_GOOD[1]], 3),
    ("infinity in a weight", in_weight(UP, math.inf), ["fp32", "bf16"], FOR_GOOD, 3),
    ("infinity in a weight that a cast clamps", in_weight(UP, math.inf), ["e5m2"], [CASTS], 0),
    ("1e30 in a weight", in_weight(UP, 1e30), ["fp32", "bf16"], FOR_GOOD, 3),
    ("a huge loss", in_weight(NORM, 1e6, whole=True), ["fp32", "bf16", "e5m2"], [(8, "loss_spike", "checkpoint")], 0),
    ("a huge loss, gradients beyond FP32", in_weight(NORM, 1e30, whole=True), ["fp32", "bf16"],
     [(8, "nan", "checkpoint"), (8, "loss_spike", "checkpoint"), (10, "nan_patience", "stop")], 3),
    ("NaN in the data", in_data(math.nan), ["fp32", "bf16"], ONCE, 1),
    ("NaN in the data", in_data(math.nan), ["e5m2"], [*ONCE, CASTS], 1),
    ("infinity in the data", in_data(math.inf), ["fp32", "bf16"], ONCE, 1),
    ("1e30 in the data", in_data(1e30), ["fp32", "bf16"], ONCE, 1),
    ("1e6 in the data, which a norm takes out", in_data(1e6), ["fp32", "bf16", "e5m2"], [], 0),
    ("NaN in a gradient", in_gradient(math.nan), ["fp32", "bf16", "e5m2"], ONCE, 1),
    ("infinity in a gradient", in_gradient(math.inf), ["fp32", "bf16", "e5m2"], ONCE, 1),
    ("a gradient whose norm is beyond FP32", in_gradient(1e25), ["fp32", "bf16", "e5m2"], ONCE, 1),
    ("a huge gradient, which clipping takes care of", in_gradient(1e6), ["fp32", "bf16", "e5m2"], [], 0),
]  # fmt: skip
ROWS = [pytest.param(recipe, *row[1:2], *row[3:], id=f"{row[0]}-{recipe}") for row in TABLE for recipe in row[2]]


@pytest.mark.parametrize(("recipe", "harm", "alerts", "skipped"), ROWS)
def test_harm(tmp_path: Path, recipe: str, harm: Harm, alerts: list[tuple[int, str, str]], skipped: int) -> None:
    one = trial(tmp_path, recipe)
    harm(one.engine)
    changed: dict[int, bool] = {}
    update = one.engine.optimizer.step
    one.engine.optimizer.step = lambda: (changed.update({one.engine.step_number + 1: True}), update())
    outcome = one.engine.run()
    assert one.alerts == alerts
    stops = [step for step, _, action in alerts if action == "stop"]
    assert outcome == ("stopped" if stops else "done")
    last = stops[0] if stops else STEPS
    assert one.metric("train/skipped_updates") == {
        step: min(max(step - BAD_STEP + 1, 0), skipped) for step in range(1, last + 1)
    }
    assert sorted(changed) == [step for step in range(1, last + 1) if not BAD_STEP <= step < BAD_STEP + skipped]
    assert one.anomalies == ["anomaly-000008"] * any(action == "checkpoint" for _, _, action in alerts)
    assert one.engine.checkpoints.backend.pointed("latest") == f"step-{last:06d}"


def test_a_skipped_update_changes_nothing_and_the_anomaly_is_the_state_before_it(tmp_path: Path) -> None:
    harmed, sound = trial(tmp_path / "a", "e5m2"), trial(tmp_path / "b", "e5m2")
    in_gradient(math.inf)(harmed.engine)
    for each in (harmed, sound):
        each.engine.model.train()
        for _ in range(BAD_STEP - 1):
            each.engine.step()
    assert [alert.alert for alert in harmed.engine.step()] == ["nan"]
    harmed.engine.checkpoints.settle(wait=True)
    tensors = harmed.engine.checkpoints.backend.load("anomaly-000008")[0].tensors
    for name, parameter in sound.engine.parameters.items():
        assert torch.equal(harmed.engine.parameters[name], parameter)
        assert torch.equal(tensors[f"model/{name}"], parameter)


def test_a_format_that_overflows_saves_and_goes_on(tmp_path: Path) -> None:
    """Static scales far too small: everything is clamped, the loss stays finite, the threshold is passed from step 1 on."""
    recipe = {"base": "e4m3fn", "scaling": {"kind": "static", "scale": 1e-4}}
    one = trial(tmp_path, recipe, overflow=RateRule(threshold=0.01, patience=3, action="checkpoint"))
    assert one.engine.run() == "done"
    assert one.alerts == [(3, "overflow", "checkpoint")]
    assert one.anomalies == ["anomaly-000003"]
    (event,) = [e for e in one.events if e["event"] == "alert"]
    rates = {name: value for name, value in one.values(3).items() if name.startswith("overflow_rate/")}
    assert event["layer"] == max(rates, key=rates.__getitem__).removeprefix("overflow_rate/")
    assert event["value"] == one.values(3)["overflow_rate"] > 0.1


def test_a_format_that_overflows_can_stop_the_run(tmp_path: Path) -> None:
    recipe = {"base": "e4m3fn", "scaling": {"kind": "static", "scale": 1e-4}}
    one = trial(tmp_path, recipe, overflow=RateRule(threshold=0.01, patience=2, action="stop"))
    assert one.engine.run() == "stopped"
    assert one.alerts == [(2, "overflow", "stop")]
    assert one.engine.alerts.stop_reason.startswith("The mean overflow rate is ")
    assert one.engine.checkpoints.backend.names() == ["anomaly-000002", "step-000002"]
    assert one.anomalies == ["anomaly-000002"], "a stop is recorded when nothing was before"
    again = trial(tmp_path, recipe, overflow=RateRule(threshold=0.01, patience=2, action="stop"))
    assert again.engine.resume().name == "step-000002"
    assert again.engine.run() == "stopped", (
        "killed between the last checkpoint and the last event, it must not train on"
    )
    assert again.alerts == []
    assert again.engine.alerts.stop_reason == one.engine.alerts.stop_reason


def test_a_format_whose_overflow_is_infinity_stops_the_run(tmp_path: Path) -> None:
    recipe = {"base": "e5m2", "saturation": "none", "scaling": {"kind": "static", "scale": 1e-8}}
    one = trial(tmp_path, recipe)
    assert one.engine.run() == "stopped"
    assert one.alerts == [
        (1, "nan", "checkpoint"), (1, "non_finite", "checkpoint"), (1, "overflow", "log"), (3, "nan_patience", "stop"),
    ]  # fmt: skip


def test_a_format_that_underflows_loses_its_neurons(tmp_path: Path) -> None:
    """Static scales far too large: every output gradient becomes zero."""
    big = {"format": "e4m3fn", "scaling": {"kind": "static", "scale": 1e6}}
    one = trial(tmp_path, {"base": "bf16", "grad_output": big})
    assert one.engine.run() == "done"
    assert one.alerts == [(1, "underflow", "log"), (3, "dead_neurons", "log")], "dead in three measurements, its window"
    assert list(one.metric("dead_neuron_window_frac")) == list(range(3, STEPS + 1))


def test_a_learning_rate_that_explodes_spikes_and_diverges(tmp_path: Path) -> None:
    rules = {"loss_spike": SpikeRule(window=10, min_losses=3), "divergence": DivergenceRule(patience=2, window=2)}
    one = trial(tmp_path, learning_rate=100.0, **rules)
    one.engine.run()
    assert {"loss_spike", "divergence"} <= {alert for _, alert, _ in one.alerts}


def test_everything_off_trains_on_and_still_skips(tmp_path: Path) -> None:
    one = trial(tmp_path, **dict.fromkeys(ALERTS))
    in_weight(UP, math.nan)(one.engine)
    assert one.engine.run() == "done"
    assert one.alerts == []
    assert one.metric("train/skipped_updates")[STEPS] == STEPS - BAD_STEP + 1
    assert torch.isfinite(one.engine.parameters[QKV]).all()


EVERYTHING: dict[str, Any] = {
    "nan": NanRule(patience=1, action="checkpoint"),
    "nan_patience": NanRule(patience=2, action="log"),
    "non_finite": CountRule(action="checkpoint"),
    "loss_spike": SpikeRule(threshold=0.2, window=6, min_losses=3, action="checkpoint"),
    "divergence": DivergenceRule(threshold=1e-3, patience=2, window=2),
    "bit_stall": RateRule(threshold=0.5, patience=2),
    "overflow": RateRule(threshold=0.0, patience=2, action="checkpoint"),
    "underflow": RateRule(threshold=0.01, patience=3),
    "dead_neurons": RateRule(threshold=0.0, patience=2),
}


def test_a_run_that_dies_raises_the_alerts_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Every alert is raised in it; killed after a step's checkpoint and resumed from the files of the backend."""
    recipe = {"base": "e3m4", "scaling": {"kind": "delayed", "history": 2}}

    def one(folder: str) -> Trial:
        return loud(tmp_path / folder, recipe, EVERYTHING)

    straight = one("straight")
    assert straight.engine.run() == "done"
    assert {alert for _, alert, _ in straight.alerts} == set(ALERTS)
    for step in (2, 5, 8, 9):  # tests/unit/training/test_alerts.py does it at every index of a series
        killed = one(f"killed-{step}")
        killed.engine.model.train()
        for _ in range(step):
            killed.engine.step()
            killed.engine._after_step()
        killed.engine.checkpoints.settle(wait=True)
        killed.engine.step()  # lost
        before = [alert for alert in killed.alerts if alert[0] <= step]
        resumed = one(f"killed-{step}")
        assert resumed.engine.resume().name == f"step-{step:06d}"
        assert resumed.engine.run() == "done"
        assert before + resumed.alerts == straight.alerts, step
        assert resumed.engine.alerts.state_dict() == straight.engine.alerts.state_dict()


def loud(folder: Path, recipe: object, rules: dict[str, Any]) -> Trial:
    """A training in which, with the rules of ``EVERYTHING``, every alert is raised; all checkpoints are kept."""
    made = trial(folder, recipe, learning_rate=0.1, every=1, **rules)
    made.engine.checkpoints.keep = STEPS
    in_data(math.nan)(made.engine)
    made.engine.model.token_embedding.register_forward_hook(
        lambda module, inputs, out: out * math.inf if made.engine.step_number == BAD_STEP else None
    )
    made.engine.parameters[UP].register_hook(lambda g: g.index_fill(0, torch.tensor([1, 2]), 0.0))
    return made


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("stored", [False, True], ids=["master weights", "stored weights"])
def test_an_anomaly_is_the_state_before_its_step(tmp_path: Path, alert: str, stored: bool) -> None:
    """Every bit of it, whatever was asked for it: that of the checkpoint after the step before."""
    recipe: dict[str, Any] = {"base": "e3m4", "scaling": {"kind": "delayed", "history": 2}}
    if stored:
        recipe |= {"weight_storage": "e5m6", "optimizer_state": "e5m6"}
    rule = attrs.evolve(EVERYTHING[alert], action="checkpoint")
    if alert in ("underflow", "dead_neurons"):
        rule = attrs.evolve(rule, threshold=0.0)
    rules = dict.fromkeys(ALERTS) | {alert: rule}
    one = loud(tmp_path, recipe, rules)
    one.engine.run()
    assert one.anomalies, "the alert was raised"
    backend = one.engine.checkpoints.backend
    steps = [int(name.removeprefix("anomaly-")) for name in one.anomalies]
    for step in (step for step in steps if step > 1):
        before, anomaly = backend.verify(f"step-{step - 1:06d}"), backend.verify(f"anomaly-{step:06d}")
        assert anomaly.state_hash == before.state_hash, step
    assert max(steps) > 1


def test_weights_are_copied_only_where_a_recording_may_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An action on a rate costs no second copy of weights and optimizer state in a run in which nothing is wrong."""
    from altgrad_core.training.recorder import Before

    copied: list[int] = []
    real = Before.with_weights
    monkeypatch.setattr(Before, "with_weights", lambda self, e: (copied.append(self.step + 1), real(self, e))[1])
    one = trial(tmp_path, "e5m2", non_finite=CountRule(), overflow=RateRule(threshold=0.5, action="checkpoint"))
    in_weight(UP, math.inf)(one.engine)
    assert one.engine.run() == "done"
    assert one.alerts == [(8, "non_finite", "checkpoint")]
    assert copied == [8], "while it lasts it is one episode"


def test_a_second_look_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are those of a run whose second look succeeds, with stochastic rounding and dropout's generators, too."""
    recipe = {"base": "e5m2", "rounding": "stochastic"}

    def examine(*_: Any) -> None:
        torch.rand(3)  # half of a pass
        raise torch.OutOfMemoryError("CUDA out of memory")

    def ends(folder: str) -> tuple[Trial, str]:
        one = trial(tmp_path / folder / "checkpoints", recipe, every=4)
        one.engine.train_config = attrs.evolve(one.engine.train_config, eval_every=BAD_STEP)
        in_data(math.nan)(one.engine)
        assert one.engine.run() == "done"
        return one, one.engine.checkpoints.backend.verify(f"step-{STEPS:06d}").state_hash

    sound, expected = ends("sound")
    monkeypatch.setattr("altgrad_core.training.recorder.examine", examine)
    failed, found = ends("failed")
    assert found == expected
    assert failed.metric("val/loss") == sound.metric("val/loss")
    (warning,) = [e["message"] for e in failed.events if e.get("level") == "warning"]
    assert "second look at step 8 failed" in warning
    assert "CUDA out of memory" in warning
    facts = json.loads((tmp_path / "failed" / "anomalies" / "step-000008" / "anomaly.json").read_text())
    assert facts["second_look_failed"] == "OutOfMemoryError: CUDA out of memory"
    assert facts["first"] == []
    assert (tmp_path / "failed" / "anomalies" / "step-000008" / "batch.safetensors").is_file()
    facts = json.loads((tmp_path / "sound" / "anomalies" / "step-000008" / "anomaly.json").read_text())
    assert facts["second_look_failed"] is None
    assert facts["first"]


LOUD = """
[[run]]
name = "r"
recipe = { base = "e3m4", scaling = { kind = "delayed", history = 2 } }
[run.train]
learning_rate = 0.3
warmup_steps = 0
[run.probes.gradients]
window = 2
[run.alerts]
loss_spike = { threshold = 0.2, window = 6, min_losses = 3 }
divergence = { threshold = 1e-3, patience = 2, window = 2 }
bit_stall = { threshold = 0.1, patience = 2 }
overflow = { threshold = 0, patience = 2, action = "checkpoint" }
underflow = 0
"""


@pytest.mark.slow
def test_a_run_killed_with_kill_minus_nine_raises_the_alerts_of_an_uninterrupted_one(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    file = make_experiment(LOUD, launcher="process")

    def run(runs: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "altgrad_core.cli", "run", str(file), "--runs", runs]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def alerts(runs: str) -> list[dict[str, Any]]:
        events = altgrad.load_run(tmp_path / runs / "small" / "r").alerts
        return [{key: value for key, value in event.items() if key != "time"} for event in events]

    killed = run("killed")
    log = tmp_path / "killed" / "small" / "r" / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"event": "metrics", "step": 7, ' in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    os.kill(killed.pid, signal.SIGKILL)
    os.kill(next(event["pid"] for event in told if event.get("status") == "running"), signal.SIGKILL)
    killed.wait()
    assert run("killed").wait(timeout=120) == 0
    altgrad.run(file, runs="straight", overrides=['launcher="inline"'])
    assert alerts("killed") == alerts("straight")
    assert {"loss_spike", "divergence", "overflow", "underflow", "bit_stall"} <= {
        a["alert"] for a in alerts("straight")
    }
