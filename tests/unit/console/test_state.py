"""Events to state: what the screen knows, and nothing from a clock."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import START, Teller, matrix, training

from altgrad_core.console.frame import validation_text
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


@pytest.mark.parametrize("last_words", [False, True])
def test_a_stretch_that_was_killed_ends_with_its_last_event(last_words: bool) -> None:
    """No event tells of kill -9; what a new process tells before it says that it runs is no part of the old stretch."""
    run = RunState("r")
    tell = Teller(run)
    tell.start(1000)
    tell.train(1, 100)
    if last_words:
        tell("status", status="interrupted", step=100, reason="SIGTERM")
    spent = run.elapsed_s(tell.now)
    tell.now += 36_000
    tell("task", task="building the model", state="begin", done=0, total=7, unit="parameters")
    tell("log", level="info", message="Reading a large text")
    tell("task", task="building the model", state="end")
    tell("status", status="running", pid=2, step=50, resumed=True)
    tell.train(51, 100)
    assert run.pace_s == 1
    assert run.eta_s == 900
    assert run.elapsed_s(tell.now) == spent + 50


def test_a_start_that_was_killed_before_it_ran_takes_no_time() -> None:
    run = RunState("r")
    tell = Teller(run)
    tell.start(10)
    tell.train(1, 3)
    spent = run.elapsed_s(tell.now)
    tell.now += 36_000
    tell("task", task="loading a checkpoint", state="begin")
    run.stop("interrupted", "its process ended without a word")
    assert run.elapsed_s(math.inf) == spent


def test_only_a_run_that_is_done_has_no_time_left() -> None:
    for status, left in (("done", 0.0), ("interrupted", None), ("failed", None), ("stopped", None)):
        run = RunState("r")
        tell = Teller(run)
        tell.start(100)
        tell.train(1, 12)
        tell("status", status=status, step=12, reason="")
        assert run.eta_s == left


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


def test_the_best_evaluation_survives_a_step_back() -> None:
    """A crash between two checkpoints: steps are evaluated again, and what was best before them still is."""
    run = RunState("r")
    tell = Teller(run)
    for step, loss in ((50, 2.0), (100, 1.9), (150, 2.6), (100, 2.1)):
        tell.evaluate(step, loss)
    assert run.validation is not None
    assert (run.validation.best_loss, run.validation.best_step) == (2.0, 50)
    tell.evaluate(150, 2.6)
    assert "best 2.0000 at 50" in validation_text(run, 200)


def test_without_a_finite_evaluation_there_is_no_best() -> None:
    run = RunState("r")
    tell = Teller(run)
    for step in (50, 100):
        tell.evaluate(step, math.nan)
        assert "best" not in validation_text(run, 200)
    tell.evaluate(150, 3.0)
    assert "best so far" in validation_text(run, 200)


def test_an_alert_of_a_step_trained_again_counts_once() -> None:
    run = RunState("r")
    tell = Teller(run)
    for step, name in ((120, "nan"), (120, "overflow"), (121, "nan"), (120, "nan")):
        tell("alert", step=step, alert=name, action="log", value=1.0, threshold=1.0, message=name)
    assert run.alerts == 3


def test_the_checkpoint_is_one_to_go_on_from() -> None:
    run = RunState("r")
    tell = Teller(run)

    def saved(kind: str, name: str, seconds: float) -> None:
        tell("checkpoint", step=1, kind=kind, name=name, path=f"checkpoints/{name}", bytes=1, seconds=seconds)

    saved("step", "step-000100", 7.0)
    saved("anomaly", "anomaly-000123", 8.0)
    assert run.checkpoint is not None
    assert run.checkpoint["name"] == "step-000100"
    saved("resumed", "step-000100", 0.1)
    assert (run.checkpoint["kind"], run.checkpoint["seconds"]) == ("step", 7.0), "how long it took to save, not to load"
    saved("resumed", "step-000110", 0.1)  # its process was killed before it told of it
    assert run.checkpoint["name"] == "step-000110"


def test_difference_from_the_baseline_after_a_step_back() -> None:
    """The loss that is shown is that of the last step that was logged, and so is the baseline's."""
    screen = matrix()
    run, base = screen.runs["e5m2-delayed"], screen.runs["bf16"]
    before = screen.against_baseline(run)
    run.take({"time": run.latest + 1, "event": "status", "status": "running", "pid": 2, "step": 100, "resumed": True})
    assert run.step == 100
    assert run.loss_step == 129
    assert screen.against_baseline(run) == before == (base.losses.at(129), before[1])


def test_difference_from_the_baseline_at_the_same_step() -> None:
    screen = matrix()
    run, base = screen.runs["e5m2-delayed"], screen.runs["bf16"]
    loss = base.losses.at(129)
    assert loss is not None
    assert screen.against_baseline(run) == (loss, 100 * (run.values["train/loss"] / loss - 1))
    assert screen.against_baseline(base) is None
    run.losses.add(301, 2.0)
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


def series_of(values: list[float]) -> Series:
    series = Series()
    for step, value in enumerate(values):
        series.add(step, value)
    return series


@given(st.lists(st.floats(-10, 10), max_size=3000), st.integers(8, 100))
def test_a_curve_keeps_length_and_range(values: list[float], points: int) -> None:
    series = series_of(values)
    curve = series.curve(points)
    assert len(curve) == min(len(values), points) or len(values) > 512
    assert len(curve) <= points
    assert all(series.at(step) == value for step, value in enumerate(values))
    assert series.at(len(values)) is None
    if values:
        assert min(values) - 1e-9 <= min(curve) <= max(curve) <= max(values) + 1e-9


@given(st.sampled_from([64, 256, 512, 1024, 4096]), st.sampled_from([8, 16, 32, 64]), st.randoms())
def test_a_curve_is_made_of_means(length: int, points: int, rng: random.Random) -> None:
    values = [rng.uniform(-10, 10) for _ in range(length)]
    each = length // points
    means = [statistics.fmean(values[start : start + each]) for start in range(0, length, each)]
    assert series_of(values).curve(points) == pytest.approx(means)


@given(st.integers(513, 5000), st.integers(8, 100))
def test_a_curve_of_any_length_keeps_the_mean(length: int, points: int) -> None:
    """A point too many or too few of a group moves it by a fraction of what one point stands for."""
    curve = series_of([float(step) for step in range(length)]).curve(points)
    assert statistics.fmean(curve) == pytest.approx((length - 1) / 2, abs=1.5 * length / points)
    assert curve == sorted(curve)


def test_a_step_that_comes_again_replaces_what_followed() -> None:
    series = Series()
    for step in range(1, 2001):
        series.add(step, 1.0)
    series.add(1000, 2.0)
    assert len(series) == 1000
    assert series.at(1000) == 2.0
    assert series.at(1001) is None
    assert max(series.curve(100)) > 1.0
