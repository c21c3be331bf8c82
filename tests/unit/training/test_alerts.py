from __future__ import annotations

import json
import math

import pytest

from altgrad_core.plugins import Choice
from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.config import AlertConfig


def test_first_nan_saves_and_patience_stops() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=3))
    assert watch.check_finite(1.0, 1.0) is None
    actions = [watch.check_finite(math.nan, 1.0).action for _ in range(3)]
    assert actions == ["checkpoint", "log", "stop"]


def test_a_finite_step_starts_the_count_again() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=2))
    first = watch.check_finite(1.0, math.inf)
    assert first.action == "checkpoint"
    assert "gradient norm is inf" in first.message
    watch.check_finite(1.0, 1.0)
    assert watch.check_finite(1.0, math.nan).action == "log", "one anomaly checkpoint a run, not one a spike"
    assert watch.check_finite(1.0, math.nan).action == "stop"


def test_patience_of_one_stops_at_once() -> None:
    assert AlertWatch(AlertConfig(nan_patience=1)).check_finite(math.nan, 1.0).action == "stop"


def test_a_rate_warns_when_it_rises_and_names_the_worst_layer() -> None:
    watch = AlertWatch(AlertConfig(overflow=0.01))
    high = {
        "overflow_rate": 0.02,
        "overflow_rate/a.input": 0.04,
        "overflow_rate/b.input": 0.0,
        "overflow_rate/c": math.nan,
    }
    (alert,) = watch.check_rates(high)
    assert alert.alert == "overflow"
    assert "2.00%" in alert.message
    assert "a.input (4.00%)" in alert.message
    assert watch.check_rates(high) == []
    assert watch.check_rates({"overflow_rate": 0.01}) == []
    assert len(watch.check_rates(high)) == 1


@pytest.mark.parametrize(
    ("rounding", "said"),
    [(None, "in the FP32 master weights until"), ("nearest_even", "these updates are lost; rounding = "),
     ("stochastic", "rounds them stochastically: on average no update is lost.")],
)  # fmt: skip
def test_what_a_bit_stall_means_depends_on_where_the_weights_are(rounding: str | None, said: str) -> None:
    how = None if rounding is None else OperandCast(format="e5m2", scaling=Choice("current"), rounding=rounding)
    watch = AlertWatch(AlertConfig(bit_stall=0.5), weight_storage=how)
    (alert,) = watch.check_rates({"bit_stall_rate": 0.9, "bit_stall_rate/a": 0.9})
    assert said in alert.message


def test_state_goes_on_after_resume() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=3))
    watch.check_finite(math.nan, 1.0)
    watch.check_rates({"overflow_rate": 0.5, "overflow_rate/a": 0.5})
    resumed = AlertWatch(AlertConfig(nan_patience=3))
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert resumed.check_rates({"overflow_rate": 0.5, "overflow_rate/a": 0.5}) == []
    assert resumed.check_finite(math.nan, 1.0).action == "log"
    assert resumed.check_finite(math.nan, 1.0).action == "stop"
