"""The engine saves in the background: what it tells, in which order, and what happens when saving or training fails."""

from __future__ import annotations

import itertools
import threading
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

import altgrad_core as altgrad
from altgrad_core.errors import RunFailed
from altgrad_core.plugins import Choice
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.checkpoint import Checkpoints, Content, Saved, load_checkpoint
from altgrad_core.training.config import AlertConfig, NanRule, TrainConfig
from altgrad_core.training.data import TokenData
from altgrad_core.training.engine import Engine
from altgrad_core.training.events import Event
from altgrad_core.training.restore import UnfitCheckpoint


class Sinks:
    """Counts the events it has seen, as a file sink does."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def engine(
    backend: LocalBackend, emit: Callable[[Event], None] = lambda event: None, recipe: Any = "e5m2", **options: Any
) -> Engine:
    torch.manual_seed(0)
    recipe = resolve_recipe(recipe)
    model, _ = altgrad.convert(
        build_gpt(GPTOptions(**{"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, **options}), 31), recipe
    )
    tokens = np.random.default_rng(0).integers(0, 31, 4096, dtype=np.uint16)
    sinks = Sinks()

    def count(event: Event) -> None:
        sinks.seen += 1
        emit(event)

    return Engine(
        train=TrainConfig(steps=6, batch_size=2, eval_every=0, eval_batches=1, optimizer=Choice("adamw")), block_size=16,
        seed=5, checkpoint_every=2, recipe=recipe, model=model, optimizer=build_adamw(AdamWOptions(), model, 1e-3, 0.1),
        data=TokenData(name="random", train=tokens, val=tokens[:512], vocab_size=31, tokenizer="bytes", documents=0,
                       source_sha256="", path=Path()),
        probes={}, alerts=AlertWatch(AlertConfig()), checkpoints=Checkpoints(backend, 3, print), emit=count,
        stop_requested=lambda steps: False, sinks=sinks, device=torch.device("cpu"), config={},
    )  # fmt: skip


class Delayed(LocalBackend):
    """Takes a while over each checkpoint, and fails where it is told to."""

    def __init__(self, folder: Path, *, seconds: float = 0.0, fails: str = "") -> None:
        super().__init__(folder)
        self.seconds, self.fails, self.threads = seconds, fails, set[int]()

    def save(self, name: str, content: Content, told: Callable[[int], None]) -> Saved:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if name == self.fails:
            raise RunFailed(f"Could not write the checkpoint {name}: No space left on device")
        return super().save(name, content, told)


def test_every_checkpoint_is_told_once_it_is_durable(tmp_path: Path) -> None:
    told: list[tuple[str, int, bool]] = []
    backend = Delayed(tmp_path, seconds=0.05)

    def emit(event: Event) -> None:
        if event["event"] in ("metrics", "checkpoint"):
            whole = event["event"] == "checkpoint" and backend.verify(event["name"]).state_hash == event["state_hash"]
            told.append((event["event"], event["step"], whole))

    assert engine(backend, emit).run() == "done"
    assert [step for kind, step, _ in told if kind == "checkpoint"] == [2, 4, 6]
    assert all(whole for kind, _, whole in told if kind == "checkpoint")
    assert [step for kind, step, _ in told if kind == "metrics"] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert threading.get_ident() not in backend.threads


def test_saving_is_told_as_a_task_from_the_copy_to_the_disk(tmp_path: Path) -> None:
    events: list[Event] = []
    one = engine(Delayed(tmp_path, seconds=0.05), events.append)
    one.run()
    told = [(e["event"], e.get("state")) for e in events if e["event"] == "checkpoint" or e.get("task") == "checkpoint"]
    assert [what for what in told if what != ("task", "progress")] == 3 * [
        ("task", "begin"), ("task", "end"), ("checkpoint", None),
    ]  # fmt: skip
    (total,) = {e["total"] for e in events if e.get("task") == "checkpoint" and e["state"] == "begin"}
    assert 0 < total < events[-1]["bytes"] < 1.5 * total
    assert one.checkpoints.written == total


def test_a_slow_disk_changes_no_bit_and_no_metric(tmp_path: Path) -> None:
    events: dict[str, list[Event]] = {"fast": [], "slow": []}
    for name, seconds in (("fast", 0.0), ("slow", 0.1)):
        engine(Delayed(tmp_path / name, seconds=seconds), events[name].append).run()
    metrics = {
        name: [(e["step"], k, v) for e in seen for k, v in e.get("values", {}).items() if "_s" not in k]
        for name, seen in events.items()
    }
    assert metrics["fast"] == metrics["slow"]
    hashes = {name: [e["state_hash"] for e in seen if e["event"] == "checkpoint"] for name, seen in events.items()}
    assert hashes["fast"] == hashes["slow"]
    assert len(set(hashes["fast"])) == 3


def test_the_sinks_state_is_that_of_the_snapshot(tmp_path: Path) -> None:
    events: list[Event] = []
    one = engine(Delayed(tmp_path, seconds=0.05), events.append)
    one.run()
    for name in ("step-000002", "step-000004"):
        seen = load_checkpoint(one.checkpoints.backend, name).notes["sinks"]["seen"]
        before = events[:seen]
        step = int(name[-1])
        assert [e["step"] for e in before if e["event"] == "metrics"][-1] == step
        assert not any(e["step"] > step for e in before if e["event"] in ("evaluation", "metrics"))
        assert not any(e["event"] == "checkpoint" and e["name"] == name for e in before)


@pytest.mark.parametrize(("fails", "steps"), [("step-000002", {2, 3, 4}), ("step-000006", {6})])
def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path: Path, fails: str, steps: set[int]) -> None:
    one = engine(Delayed(tmp_path, seconds=0.01, fails=fails))
    with pytest.raises(RunFailed, match=f"{fails}: No space left"):
        one.run()
    assert one.step_number in steps
    assert one.checkpoints.settle(wait=True) is None


def test_a_training_that_fails_waits_for_the_save(tmp_path: Path) -> None:
    events: list[Event] = []
    one = engine(Delayed(tmp_path, seconds=0.3), events.append)
    step = one.optimizer.step

    def breaks() -> None:
        if one.step_number == 2:
            raise ArithmeticError("in the third step")
        step()

    one.optimizer.step = breaks
    with pytest.raises(ArithmeticError, match="third step"):
        one.run()
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2]
    assert not list(tmp_path.glob(".saving-*"))


def test_both_failures_are_told(tmp_path: Path) -> None:
    one = engine(Delayed(tmp_path, seconds=0.3, fails="step-000002"))
    step = one.optimizer.step

    def breaks() -> None:
        if one.step_number == 2:
            raise ArithmeticError("in the third step")
        step()

    one.optimizer.step = breaks
    with pytest.raises(ArithmeticError) as caught:
        one.run()
    assert "No space left on device" in caught.value.__notes__[0]


def test_resuming_takes_all_of_it_up(tmp_path: Path) -> None:
    one = engine(LocalBackend(tmp_path))
    one.run()
    again = engine(LocalBackend(tmp_path))
    saved = again.resume()
    assert (saved.name, again.step_number, again.best_checkpoint) == ("step-000006", 6, "step-000006")
    assert again.best_loss == one.best_loss
    assert 0 < again.sinks.seen < one.sinks.seen


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"n_embd": 64},
            r"fit this run's model: token_embedding.weight is float32 \[31, 32\] there, float32 \[31, 64\] here",
        ),
        ({"n_layer": 2}, r"fit this run's model: blocks\.1\..* is missing;.* and \d+ more"),
        ({"bias": False}, r"fit this run's model: RuntimeError: (?s:.*)Unexpected key\(s\)"),
    ],
)
def test_a_whole_checkpoint_of_another_model(tmp_path: Path, options: dict[str, int], text: str) -> None:
    engine(LocalBackend(tmp_path)).run()
    with pytest.raises(UnfitCheckpoint, match=text) as caught:
        engine(LocalBackend(tmp_path), **options).resume()
    assert "step-000006 is whole, but does not" in str(caught.value)
    assert "--fresh" in str(caught.value)


def change(state: dict[str, Any], what: str) -> None:
    match what:
        case "order":
            state["model"] = dict(reversed(state["model"].items()))
        case "dtype":
            state["model"] = {name: tensor.double() for name, tensor in state["model"].items()}
        case "optimizer":
            state["optimizer"]["param_groups"] = []
        case "step":
            del state["step"]
        case "rng":
            state["rng"]["torch"] = torch.zeros(3, dtype=torch.uint8)
        case _:
            state["model"] = 3


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("order", "model: its parameters are in another order"),
        ("dtype", r"model: .* is float64 \[31, 32\] there, float32 \[31, 32\] here"),
        ("optimizer", "optimizer: ValueError"),
        ("step", "step: KeyError: 'step'"),
        ("rng", "rng: "),
        ("nothing", "model: there is no state of a model in it"),
    ],
)
def test_a_state_that_does_not_fit(tmp_path: Path, what: str, text: str) -> None:
    one = engine(LocalBackend(tmp_path))
    one.run()
    state = one.checkpoints.load_newest().state
    change(state, what)
    one.checkpoints.save(7, state, kind="step", notes={"sinks": {"seen": 1}, "best": {"loss": 0.0, "checkpoint": None}})
    one.checkpoints.settle(wait=True)
    with pytest.raises(UnfitCheckpoint, match=text):
        engine(LocalBackend(tmp_path)).resume()


def losses_of(events: list[Event]) -> list[tuple[int, str]]:
    return [(e["step"], name) for e in events if e["event"] == "metrics" for name in e["values"] if "/loss" in name]


@pytest.mark.parametrize("first_step", [0, 3])
def test_a_signal_during_the_first_evaluation_doubles_no_metric(tmp_path: Path, first_step: int) -> None:
    """The run that goes on from the checkpoint of its first step does not evaluate it once more; a fork's neither."""
    events: dict[str, list[Event]] = {"straight": [], "stopped": []}

    def begin(name: str) -> Engine:
        one = engine(LocalBackend(tmp_path / name), events[name].append)
        one.step_number = one.first_step = first_step
        return one

    assert begin("straight").run() == "done"
    stopped = begin("stopped")
    answers = iter([False, True])  # not before the evaluation, but after it
    stopped.stop_requested = lambda steps: next(answers)
    assert stopped.run() == "interrupted"
    again = begin("stopped")
    assert again.resume().name == f"step-{first_step:06d}"
    assert again.run() == "done"
    assert losses_of(events["stopped"]) == losses_of(events["straight"])
    assert losses_of(events["straight"])[0] == (first_step, "val/loss")


def test_a_signal_before_the_first_evaluation_does_not_cost_it(tmp_path: Path) -> None:
    events: list[Event] = []
    stopped = engine(LocalBackend(tmp_path), events.append)
    stopped.stop_requested = lambda steps: True
    assert stopped.run() == "interrupted"
    again = engine(LocalBackend(tmp_path), events.append)
    again.resume()
    again.run()
    assert losses_of(events)[:2] == [(0, "val/loss"), (1, "train/loss")]


@pytest.mark.parametrize("stop_after", [4, 5])
def test_a_resumed_run_knows_that_something_was_recorded(tmp_path: Path, stop_after: int) -> None:
    """A stop is recorded only where nothing was before: the same decision with an interruption between as without."""

    class Recorder:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def record(self, engine: Engine, context: Any, alerts: Any, before: Any) -> Event:
            self.steps.append(context.step)
            return {"event": "anomaly", "step": context.step}

    recorder = Recorder()

    def begin(name: str) -> Engine:
        one = engine(LocalBackend(tmp_path / name))
        one.alerts = AlertWatch(AlertConfig(nan_patience=NanRule(patience=3, action="stop")))
        one.recorder = recorder

        def bad(module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor | None:
            return out * float("nan") if one.model.training and one.step_number >= 3 else None

        one.model.register_forward_hook(bad)
        return one

    assert begin("straight").run() == "stopped"
    assert recorder.steps == [4]
    recorder.steps.clear()
    stopped = begin("stopped")
    stopped.stop_requested = lambda steps: steps >= stop_after
    assert stopped.run() == "interrupted"
    again = begin("stopped")
    again.resume()
    assert again.run() == "stopped"
    assert recorder.steps == [4]


def metrics(events: list[Event]) -> list[tuple[int, str, float]]:
    return [
        (event["step"], name, value)
        for event in events
        if event["event"] == "metrics"
        for name, value in event["values"].items()
        if not name.endswith("_s")
    ]


@pytest.mark.parametrize("recipe", ["e5m2", {"base": "e5m2", "rounding": "stochastic"}])
def test_an_evaluation_that_is_cut_off_is_made_up_for(tmp_path: Path, recipe: object) -> None:
    """After the resume: same loss, same best, nothing twice, wherever the run was asked to end."""

    def prepared(name: str, events: list[Event]) -> Engine:
        one = engine(LocalBackend(tmp_path / name), events.append, recipe=recipe)
        one.train_config = attrs.evolve(one.train_config, eval_every=2, eval_batches=3)
        return one

    def ends(name: str) -> tuple[str, str | None]:
        backend = LocalBackend(tmp_path / name)
        return backend.verify("step-000006").state_hash, backend.pointed("best")

    reference: list[Event] = []
    assert prepared("straight", reference).run() == "done"
    assert [step for step, name, _ in metrics(reference) if name == "val/loss"] == [0, 2, 4, 6]
    outcomes = set()
    for polls in range(1, 20):  # it is asked 4 x 3 times in evaluations and 6 times before steps
        name, events, asked = str(polls), list[Event](), itertools.count(1)
        first = prepared(name, events)
        first.stop_requested = lambda steps, asked=asked, polls=polls: next(asked) >= polls
        outcomes.add(outcome := first.run())
        if outcome == "interrupted":
            again = prepared(name, events)
            again.resume()
            assert again.run() == "done"
        assert metrics(events) == metrics(reference), polls
        assert ends(name) == ends("straight"), polls
    assert outcomes == {"interrupted", "done"}
