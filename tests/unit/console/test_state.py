"""Events to state: what the screen knows, and nothing from a clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import START, Teller, matrix, training

from altgrad_core.console.series import Series
from altgrad_core.console.state import RunState, ScreenState
from altgrad_core.training.events import marked_as_simulated


def test_eta_leaves_the_first_steps_out() -> None:
    run = RunState("r", steps=100)
    tell = Teller(run)
    tell.start(100)
    assert run.eta_s is None
    tell.now += 50  # compiling
    tell.train(1, 3)
    assert run.eta_s is None
    tell.train(4, 10)
    assert run.pace_s == 1.0
    assert run.eta_s == 90.0
    assert run.elapsed_s(tell.now + 5) == tell.now + 5 - (START + 1)


def test_time_of_a_resumed_run_is_the_sum_of_its_stretches() -> None:
    run = RunState("r")
    tell = Teller(run)
    tell.start(20)
    tell.train(1, 8)
    tell("status", status="interrupted", step=8, reason="signal")
    spent = run.elapsed_s(math.inf)
    assert spent == tell.now - (START + 1)
    tell("log", level="warning", message="a sink failed while it was closed")
    assert run.status == "interrupted"
    tell.now += 1000
    tell("status", status="running", pid=2, step=6, resumed=True)
    assert (run.status, run.step, run.pace_s) == ("running", 6, None)
    tell.train(7, 12)
    assert run.elapsed_s(tell.now) == spent + 6
    assert len(run.losses) == 12
    tell("status", status="done", step=20, reason="")
    assert run.elapsed_s(math.inf) == spent + 7
    assert run.eta_s == 0


def test_a_run_whose_process_is_gone() -> None:
    run = training().runs["e5m2"]
    run.stop("interrupted", "its process ended without a word")
    assert run.over
    assert not run.tasks
    assert run.elapsed_s(math.inf) == run.elapsed_s(0)


def test_tasks_come_and_go() -> None:
    run = RunState("r")
    tell = Teller(run)
    tell("task", task="loading weights", state="begin", total=10, unit="files")
    tell("task", task="loading weights", state="progress", done=4)
    task = run.tasks["loading weights"]
    assert (task.done, task.total, task.unit, task.since) == (4, 10, "files", START + 1)
    tell("evaluation", step=3, state="begin")
    assert list(run.tasks) == ["loading weights", "evaluation"]
    tell("task", task="loading weights", state="end")
    tell("evaluation", step=3, state="end")
    assert not run.tasks


def test_the_best_evaluation_is_remembered() -> None:
    run = RunState("r")
    tell = Teller(run)
    tell.evaluate(0, 5.5)
    assert run.validation is not None
    assert run.validation.above_training is None
    tell.train(1, 10)
    tell.evaluate(10, 4.0)
    tell.evaluate(20, math.nan)
    tell.evaluate(30, 4.5)
    valid = run.validation
    assert valid is not None
    assert (valid.step, valid.loss, valid.best_loss, valid.best_step) == (30, 4.5, 4.0, 10)
    assert valid.above_training == pytest.approx(4.5 - run.values["train/loss"])
    assert (valid.patience_used, valid.patience) == (0, 5)


def test_difference_from_the_baseline_at_the_same_step() -> None:
    screen = matrix()
    run, base = screen.runs["e5m2-delayed"], screen.runs["bf16"]
    loss = base.losses.at(129)
    assert loss is not None
    assert screen.against_baseline(run) == (loss, 100 * (run.values["train/loss"] / loss - 1))
    assert screen.against_baseline(base) is None
    run.step = 301
    assert screen.against_baseline(run) is None


def test_eta_of_all_runs_takes_waiting_ones_to_be_as_fast() -> None:
    screen = matrix(waiting=2)
    assert screen.runs["e5m2-delayed"].pace_s == pytest.approx(1, abs=0.1)
    paces = [run.pace_s for run in screen.runs.values() if run.pace_s]
    mean = sum(paces) / len(paces)
    own = screen.runs["e5m2-delayed"]
    assert screen.eta_s() == pytest.approx(171 * own.pace_s + 600 * mean)
    assert ScreenState().eta_s() is None


def test_utilization_and_peak_memory_over_samples() -> None:
    screen = training(8)
    run = screen.runs["e5m2"]
    assert run.mean_utilization == pytest.approx((93 + 94 + 95 + 61 + 97 + 93 + 94 + 95) / 8)
    assert run.peak_mib == 62_000 + 37 * 7
    cpu = training().runs["e5m2"]
    assert cpu.peak_mib == 1024
    assert cpu.mean_utilization is None


def test_a_simulation_is_the_same_state_with_a_mark() -> None:
    run, simulated = RunState("r"), RunState("r")
    tell = Teller(run)
    tell.start(20)
    tell.train(1, 5)
    tell.evaluate(5, 4.0)
    for event in tell.events:
        simulated.take(marked_as_simulated(event))
    assert simulated.simulated
    assert not run.simulated
    assert simulated.values == run.values
    assert simulated.validation == run.validation
    assert all(name.startswith("simulated/") for name in marked_as_simulated(tell.events[-2])["values"])


def test_what_it_does_not_know_is_passed_over() -> None:
    run = RunState("r")
    run.take({"time": 1.0, "event": "of a later version", "x": 1})
    run.take({"time": 2.0, "event": "host", "cpu_percent": 1.0, "cores": 1, "used_bytes": 1, "total_bytes": 1,
              "process_bytes": 1, "of a later version": 1})  # fmt: skip
    assert run.host is not None


def test_thresholds_are_numbers_or_rules() -> None:
    run = RunState("r")
    run.facts["alerts"] = {"a": 0.5, "b": {"threshold": 0.25, "patience": 3}, "c": {"warn": 1}, "d": True, "e": None}
    assert [run.threshold(name) for name in "abcdef"] == [0.5, 0.25, None, None, None, None]


@given(st.lists(st.floats(-10, 10), max_size=3000), st.integers(8, 100))
def test_a_curve_keeps_mean_and_length(values: list[float], points: int) -> None:
    series = Series()
    for step, value in enumerate(values):
        series.add(step, value)
    curve = series.curve(points)
    assert len(curve) == min(len(values), points) or len(values) > 512
    assert len(curve) <= points
    assert all(series.at(step) == value for step, value in enumerate(values))
    assert series.at(len(values)) is None
    if values:
        assert min(values) - 1e-9 <= min(curve) <= max(curve) <= max(values) + 1e-9


def test_a_step_that_comes_again_replaces_what_followed() -> None:
    series = Series()
    for step in range(1, 2001):
        series.add(step, 1.0)
    series.add(1000, 2.0)
    assert len(series) == 1000
    assert series.at(1000) == 2.0
    assert series.at(1001) is None
    assert max(series.curve(100)) > 1.0
