"""The simulated training: a pure function of its seed, marked everywhere, with the shape that was promised."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from typing import Any

import attrs
import pytest

from altgrad_core.console.state import RunState
from altgrad_core.errors import AltgradError
from altgrad_core.simulation.catalog import GPUS, MODELS
from altgrad_core.simulation.cluster import Cluster
from altgrad_core.simulation.stream import Simulation, plan, simulate

START = 1_700_000_000.0


def events(**options: Any) -> list[dict[str, Any]]:
    return list(simulate(Simulation(**{"steps": 120, "gpus": 16, "nodes": 2, **options}), START))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-xl", 1_557_611_200),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_parameters_are_those_that_the_models_publish(name: str, parameters: int) -> None:
    assert MODELS[name].parameters == parameters


def test_gpt3_has_175_billion() -> None:
    assert round(MODELS["gpt3-175b"].parameters / 1e9) == 175


def test_a_seed_repeats_the_story_and_another_does_not() -> None:
    assert events(seed=3) == events(seed=3)
    assert events(seed=3) != events(seed=4)


def test_every_event_is_marked_and_no_metric_has_a_real_name() -> None:
    for event in events():
        assert event["simulated"] is True
        for name in event.get("values", {}):
            assert name.startswith("simulated/")


def test_time_passes_and_every_step_is_told_once() -> None:
    story = events()
    times = [event["time"] for event in story]
    assert times == sorted(times)
    assert times[0] == START
    steps = [event["step"] for event in story if "simulated/train/loss" in event.get("values", {})]
    assert steps == list(range(1, 121))
    assert story[-1]["status"] == "done"


def test_the_loss_decays_exponentially_to_a_floor_with_noise() -> None:
    story = events(steps=2000, faults="none", patience=10**6)
    losses = [e["values"]["simulated/train/loss"] for e in story if "simulated/train/loss" in e.get("values", {})]
    above = [statistics.fmean(losses[at - 20 : at + 20]) - 2.05 for at in (100, 300, 500)]
    assert above[1] / above[0] == pytest.approx(math.exp(-1.2), rel=0.01)
    assert above[2] / above[1] == pytest.approx(math.exp(-1.2), rel=0.01)
    tail = losses[-200:]
    assert statistics.fmean(tail) == pytest.approx(2.05, abs=0.005)
    assert 0.015 < statistics.stdev(tail) < 0.025
    for event in story:
        values = event.get("values", {})
        for kind in ("train", "val"):
            if f"simulated/{kind}/loss" in values:
                expected = math.exp(values[f"simulated/{kind}/loss"])
                assert values[f"simulated/{kind}/perplexity"] == pytest.approx(expected, rel=1e-7)


def test_faults_come_as_often_as_asked() -> None:
    quiet = events(steps=1000, faults="none")
    assert not [e for e in quiet if e["event"] == "alert" or e.get("level") == "warning"]
    loud = events(steps=1000, faults="many", patience=10**6)
    assert [e for e in loud if e["event"] == "alert"]
    assert [e for e in loud if e.get("level") == "warning" and 0 <= e["rank"] < 16]
    assert {"comm", "gpus", "task", "evaluation", "checkpoint"} <= {e["event"] for e in loud}


def test_a_spike_recovers() -> None:
    story = events(steps=1500, faults="some", seed=1, patience=10**6)
    (first, *_) = [event["step"] for event in story if event["event"] == "alert"]
    losses = {
        e["step"]: e["values"]["simulated/train/loss"] for e in story if "simulated/train/loss" in e.get("values", {})
    }
    assert losses[first] > losses[first - 1] + 0.5
    assert losses[first + 60] < losses[first - 1] + 0.1


def test_patience_ends_the_training_early_and_still_saves_and_exports() -> None:
    story = events(steps=600, patience=1)
    assert story[-1]["status"] == "done"
    assert story[-1]["step"] < 600
    assert "no better validation loss" in story[-1]["reason"]
    final = [event for event in story if event["event"] == "checkpoint"][-1]
    assert (final["kind"], final["step"]) == ("final", story[-1]["step"])
    assert any("model-00001-of-" in event.get("message", "") for event in story)


def test_gpus_differ_and_each_kind_of_trouble_shows() -> None:
    cluster = Cluster(GPUS["h100"], 64, 8, "many", random.Random(0))
    assert [gpu.node for gpu in cluster.gpus[::8]] == [f"node{n:02}" for n in range(8)]
    assert len({gpu.uuid for gpu in cluster.gpus}) == 64
    first = cluster.samples()
    assert statistics.stdev(s.temperature_c for s in first) > 1
    assert statistics.stdev(s.used_mib for s in first) > 50
    seen: Counter[str] = Counter()
    slowest = 1.0
    for _ in range(2000):
        slowest = max(slowest, cluster.step())
        for sample in cluster.samples():
            assert 0 <= sample.utilization <= 100
            assert 0 < sample.used_mib <= 81_559
            assert 0 < sample.power_w <= 700
            seen["straggler"] += sample.utilization < 75
            seen["throttle"] += "hardware thermal" in sample.throttle
            seen["memory"] += sample.used_mib > 0.98 * 81_559
            seen["hot"] += 84 <= sample.temperature_c <= 89
    assert set(+seen) == {"straggler", "throttle", "memory", "hot"}
    assert slowest == 1.35


@pytest.mark.parametrize(("gpus", "nodes"), [(64, 8), (9, 4), (10, 6), (64, 60), (64, 24), (5, 5), (7, 1)])
def test_gpus_are_spread_evenly_over_as_many_nodes_as_it_says(gpus: int, nodes: int) -> None:
    cluster = Cluster(GPUS["h100"], gpus, nodes, "none", random.Random(0))
    sizes = Counter(gpu.node for gpu in cluster.gpus)
    assert len(sizes) == nodes
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert [gpu.node for gpu in cluster.gpus] == sorted(gpu.node for gpu in cluster.gpus)


def test_what_it_tells_a_screen_understands() -> None:
    run = RunState("r")
    for event in events(steps=30):
        run.take(event)
    assert run.simulated
    assert (run.status, run.step, run.steps) == ("done", 30, 30)
    assert len(run.gpus) == len(run.samples) == 16
    assert run.validation is not None
    assert run.facts["batch"]["tokens_per_step"] == 2 * 2 * 16 * 8192
    assert not run.tasks


def test_length_in_epochs() -> None:
    simulation = Simulation(gpus=1024, nodes=128, dataset="eurlex57k")
    assert plan(simulation, steps=None, epochs=None).steps == 600
    assert plan(simulation, steps=7, epochs=None).steps == 7
    epochs = plan(simulation, steps=None, epochs=3.0)
    assert epochs.epochs >= 3.0 > attrs.evolve(epochs, steps=epochs.steps - 1).epochs
    with pytest.raises(AltgradError, match="--steps or --epochs"):
        plan(simulation, steps=1, epochs=1.0)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AltgradError, match="above 0"):
            plan(simulation, steps=None, epochs=wrong)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "llama-3.1-8"}, "Did you mean 'llama-3.1-8b'"),
        ({"gpu": "h10"}, "h100"),
        ({"dataset": "x"}, "openwebtext"),
        ({"faults": "lots"}, "some"),
        ({"gpus": 4, "nodes": 5}, "1 to 4 nodes"),
        ({"steps": 0}, "at least 1 step"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(AltgradError, match=text):
        Simulation(**options)
