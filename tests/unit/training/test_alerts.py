"""Which alerts a series of values raises, at which step, with what words, and that a resumed watch raises the same."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad_core.plugins import Choice
from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.training import tree
from altgrad_core.training.alerts import ANOMALY_CHECKPOINTS, Alert, AlertWatch
from altgrad_core.training.config import ALERTS, AlertConfig, CountRule, DivergenceRule, NanRule, RateRule, SpikeRule
from altgrad_core.training.losses import LossHistory

OFF = dict.fromkeys(ALERTS)
SPIKE = SpikeRule(threshold=5.0, window=20, min_losses=5)
DIVERGENCE = DivergenceRule(threshold=0.5, patience=3, window=5)


def watching(**rules: Any) -> AlertWatch:
    """Return a watch with these alerts on and all others off."""
    return AlertWatch(AlertConfig(**{**OFF, **rules}))


def losses(watch: AlertWatch, values: Sequence[float], *, start: int = 1) -> list[tuple[int, str, str]]:
    """Return (step, alert, action) for what a series of losses raises, with a gradient norm of 1."""
    return [
        (step, alert.alert, alert.action)
        for step, value in enumerate(values, start)
        for alert in watch.check_loss(step, value, 1.0)
    ]


def only(alerts: list[Alert]) -> Alert:
    (alert,) = alerts
    return alert


def around(level: float, count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.gauss(0, 0.02) for _ in range(count)]


# NaN and infinity


def test_the_first_nan_saves_and_patience_stops() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=NanRule(patience=3, action="stop")))
    found = losses(watch, [1.0, math.nan, math.nan, math.nan, math.nan])
    assert found == [(2, "nan", "checkpoint"), (4, "nan_patience", "stop")]
    assert watch.skipped_updates == 4


def test_the_default_patience_is_ten() -> None:
    found = losses(AlertWatch(AlertConfig()), [math.inf] * 30)
    assert found == [(1, "nan", "checkpoint"), (10, "nan_patience", "stop")]


def test_a_finite_step_ends_the_episode() -> None:
    watch = watching(nan=NanRule(patience=1, action="log"), nan_patience=NanRule(patience=2, action="stop"))
    bad = math.nan
    assert losses(watch, [bad, 1.0, bad, 1.0, bad, bad]) == [
        (1, "nan", "log"), (3, "nan", "log"), (5, "nan", "log"), (6, "nan_patience", "stop"),
    ]  # fmt: skip


def test_patience_of_one_saves_and_stops_at_once() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=NanRule(patience=1, action="stop")))
    assert losses(watch, [math.nan]) == [(1, "nan", "checkpoint"), (1, "nan_patience", "stop")]


def test_skipped_updates_are_counted_with_the_alerts_off() -> None:
    watch = watching()
    assert losses(watch, [math.nan, 1.0, -math.inf]) == []
    assert watch.check_loss(4, 1.0, math.inf) == []
    assert watch.skipped_updates == 3


def test_flickering_nan_does_not_fill_the_disk() -> None:
    watch = AlertWatch(AlertConfig())
    actions = [action for _, _, action in losses(watch, [math.nan, 1.0] * 50)]
    assert actions == ["checkpoint"] * ANOMALY_CHECKPOINTS + ["log"] * (50 - ANOMALY_CHECKPOINTS)


@pytest.mark.parametrize(
    ("loss", "norm", "said", "value"),
    [
        (math.nan, math.nan, "The loss is NaN, ", math.nan),
        (math.inf, math.nan, "The loss is infinite, ", math.inf),
        (-math.inf, 1.0, "The loss is infinite, ", -math.inf),
        (2.0, math.inf, "The gradient norm is infinite, ", math.inf),
        (2.0, math.nan, "The gradient norm is NaN, ", math.nan),
    ],
)
def test_what_is_not_finite_is_named(loss: float, norm: float, said: str, value: float) -> None:
    alert = only(AlertWatch(AlertConfig()).check_loss(1, loss, norm))
    assert alert.message == (
        said + "so the update is skipped: weights and optimizer stay as they were. A single one does no harm; if more "
        "follow, lower the learning rate or give the layers whose nan_count or inf_count is not zero a wider format."
    )
    assert alert.value == value or math.isnan(alert.value) == math.isnan(value)
    assert alert.threshold == math.inf


def test_the_reason_of_a_stop() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=NanRule(patience=2, action="stop")))
    losses(watch, [math.nan, math.nan, math.nan])
    assert watch.stop_reason == (
        "The loss is NaN: 2 skipped updates in a row (nan_patience = 2), and the weights do not change any more. Lower the "
        "learning rate, lengthen the warmup, or give the layers whose nan_count or inf_count is not zero a wider format."
    )


def test_a_run_without_casts_is_not_told_of_formats() -> None:
    watch = AlertWatch(AlertConfig(nan_patience=NanRule(patience=2, action="stop")), casts=False)
    alert, *_ = watch.check_loss(1, math.nan, 1.0)
    assert alert.message.endswith("A single one does no harm; if more follow, lower the learning rate.")
    watch.check_loss(2, math.nan, 1.0)
    assert watch.stop_reason.endswith("Lower the learning rate or lengthen the warmup.")


# Rates


def rates(metric: str, mean: float, **layers: float) -> dict[str, float]:
    return {metric: mean, **{f"{metric}/{name}": value for name, value in layers.items()}}


def test_a_rate_warns_when_it_rises_and_names_the_worst_layer() -> None:
    watch = watching(overflow=RateRule(threshold=0.01))
    high = rates("overflow_rate", 0.02, a=0.04, b=0.0, c=math.nan)
    alert = only(watch.check_rates(high))
    assert (alert.alert, alert.layer, alert.value, alert.threshold) == ("overflow", "a", 0.02, 0.01)
    assert alert.message == (
        "The mean overflow rate is 2.00%, above 1.00%; highest in a (4.00%). Clamped values distort what the GEMM computes; "
        'give that operand a format with more exponent bits, or a scale that follows it (scaling = "current").'
    )
    assert watch.check_rates(high) == []
    for mean in (0.0095, 0.02, 0.01, 0.02):
        assert watch.check_rates(rates("overflow_rate", mean, a=mean)) == [], (
            "it hovers about its threshold: one episode"
        )
    assert watch.check_rates(rates("overflow_rate", 0.009, a=0.009)) == []
    assert watch.check_rates(rates("overflow_rate", 0.01, a=0.01)) == [], "the threshold itself is not beyond it"
    assert len(watch.check_rates(high)) == 1


@pytest.mark.parametrize(
    ("alert", "metric", "said"),
    [
        ("underflow", "underflow_rate",
         "The mean underflow rate is 50.00%, above 10.00% for 2 measurements in a row; highest in a (60.00%). What becomes "
         "zero is lost to the GEMM; give that operand a scale that follows it (scaling = \"current\"), scales by block "
         '(scaling = "blockwise", or smaller blocks), or a format with more exponent bits.'),
        ("dead_neurons", "dead_neuron_window_frac",
         "The mean dead-neuron fraction is 50.00%, above 10.00% for 2 measurements in a row; highest in a (60.00%). They had "
         "no gradient in any of the last measurements and no longer learn; if the underflow rate of that layer's grad_output "
         "is high, it is the format, else lower the learning rate."),
    ],
)  # fmt: skip
def test_the_words_of_the_other_rates(alert: str, metric: str, said: str) -> None:
    watch = watching(**{alert: RateRule(threshold=0.1, patience=2)})
    assert watch.check_rates(rates(metric, 0.5, a=0.6, b=0.4)) == []
    assert only(watch.check_rates(rates(metric, 0.5, a=0.6, b=0.4))).message == said


def test_a_step_without_a_measurement_neither_counts_nor_ends_the_episode() -> None:
    watch = watching(underflow=RateRule(threshold=0.1, patience=2))
    high = rates("underflow_rate", 0.5, a=0.5)
    for between in ({}, {"train/loss": 1.0}, rates("underflow_rate", math.nan, a=math.nan)):
        assert watch.check_rates(between) == []
    assert watch.check_rates(high) == []
    assert watch.check_rates({}) == []
    assert len(watch.check_rates(high)) == 1
    assert watch.check_rates(rates("underflow_rate", math.nan, a=math.nan)) == []
    assert watch.check_rates(high) == [], "it never was below"


@pytest.mark.parametrize(
    ("rounding", "said"),
    [(None, "in the FP32 master weights until"), ("nearest_even", "these updates are lost; rounding = "),
     ("stochastic", "rounds them stochastically: on average no update is lost.")],
)  # fmt: skip
def test_what_a_bit_stall_means_depends_on_where_the_weights_are(rounding: str | None, said: str) -> None:
    how = None if rounding is None else OperandCast(format="e5m2", scaling=Choice("current"), rounding=rounding)
    watch = AlertWatch(AlertConfig(), weight_storage=how)
    assert said in only(watch.check_rates(rates("bit_stall_rate", 0.9, a=0.9))).message


def test_all_rates_are_off_when_switched_off() -> None:
    everything = {}
    for metric in ("bit_stall_rate", "overflow_rate", "underflow_rate", "dead_neuron_window_frac"):
        everything |= rates(metric, 0.99, a=0.99)
    assert watching().check_rates(everything) == []
    assert {alert.alert for alert in AlertWatch(AlertConfig()).check_rates(everything)} == {
        "bit_stall", "overflow", "underflow", "dead_neurons",
    }  # fmt: skip


def test_non_finite_elements_are_summed_and_the_first_layer_named() -> None:
    watch = watching(non_finite=CountRule(threshold=2, patience=2))
    nans = {"nan_count": 0.5, "nan_count/a.input": 0.0, "nan_count/b.weight": 1.0}
    infs = {"inf_count": 600.0, "inf_count/a.input": 0.0, "inf_count/b.weight": 1199.0}
    assert watch.check_rates(nans | infs) == []
    assert watch.check_rates({"train/loss": 1.0}) == []
    alert = only(watch.check_rates(nans | infs))
    assert (alert.alert, alert.layer, alert.value, alert.threshold) == ("non_finite", "b.weight", 1200.0, 2.0)
    assert alert.message == (
        "NaN or infinite elements before casts: 1,200, more than 2 for 2 measurements in a row; first in b.weight "
        "(1,200). A cast clamps infinities, so loss and gradient norm may look sound all the same; if a weight is not finite "
        "it stays so: go back to a checkpoint and lower the learning rate."
    )
    assert watch.check_rates(nans | infs) == []
    assert watch.check_rates(nans | {"inf_count/b.weight": 1.0}) == [], "the threshold itself is not beyond it"
    assert watch.check_rates(nans | infs) == []
    assert len(watch.check_rates(nans | infs)) == 1
    assert "more than 0; first in" in only(watching(non_finite=CountRule()).check_rates(nans)).message


# Loss spikes


def slow_deviations(before: Sequence[float], loss: float) -> float:
    ordered = sorted(before)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    away = sorted(abs(value - middle) for value in before)
    mad = (away[(len(away) - 1) // 2] + away[len(away) // 2]) / 2
    return (loss - middle) / max(1.4826 * mad, 0.01 * abs(middle), 0.001)


@settings(max_examples=100)
@given(st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=60), st.integers(3, 40))
def test_deviations_against_their_definition(values: list[float], window: int) -> None:
    history = LossHistory(SpikeRule(window=window, min_losses=3), DivergenceRule(window=50))
    for index, value in enumerate(values):
        found = history.deviations(value)
        if index < 3:
            assert found is None
        else:
            before = values[max(0, index - window) : index]
            assert found == pytest.approx((slow_deviations(before, value), statistics.median(before)))
        history.add(value)


def test_a_spike_is_raised_once_and_named() -> None:
    watch = watching(loss_spike=SPIKE)
    assert losses(watch, [2.0] * 10) == []
    alert = only(watch.check_loss(11, 4.0, 1.0))
    assert (alert.alert, alert.action, alert.value, alert.threshold) == ("loss_spike", "checkpoint", 100.0, 5.0)
    assert alert.message == (
        "The loss is 4, 100 robust deviations above the median of 2 before it, beyond 5. An odd batch or too large an update; "
        "if the loss does not come back soon, lower the learning rate or train.grad_clip."
    )
    assert losses(watch, [4.0, 5.0, 2.0, 2.0], start=12) == []
    assert losses(watch, [4.0], start=16) == [(16, "loss_spike", "checkpoint")]


def test_a_spike_with_patience() -> None:
    watch = watching(loss_spike=SpikeRule(threshold=5.0, window=20, min_losses=5, patience=3, action="stop"))
    assert losses(watch, [2.0] * 10 + [4.0, 4.0, 2.0, 4.0, 4.0, 4.0, 4.0]) == [(16, "loss_spike", "stop")]
    assert "beyond 5 for 3 steps in a row." in watch.stop_reason


@pytest.mark.parametrize(
    "values",
    [
        [2.0] * 30 + [2.0 * 1.049] * 30,  # flat, then 4.9 % up: below five times the 1 % that a loss is measured by
        [1e-7] * 30 + [4e-3] + [1e-7] * 10,  # a loss of nearly nothing, then four thousandths of a nat
        [0.0] * 30 + [4e-3],
        [10 * 0.97**step for step in range(100)],  # a loss that falls
        [math.nan, math.inf] * 30 + [100.0],  # nothing to compare with
        [2.0] * 4 + [100.0],  # too early
        [2.0] * 20 + [-100.0],  # down is not up
    ],
)
def test_what_is_no_spike(values: list[float]) -> None:
    assert losses(watching(loss_spike=SPIKE), values) == []


def test_noise_is_no_spike() -> None:
    """The defaults on 5,000 losses with normal noise, none, and a tenth of a nat of it."""
    for spread in (0.0, 0.01, 0.1):
        draw = random.Random(3)
        assert losses(AlertWatch(AlertConfig()), [2.5 + draw.gauss(0, spread) for _ in range(5_000)]) == []


@pytest.mark.parametrize("height", [3.0, 1e30, 1e300])
def test_a_huge_loss_hides_no_later_one(height: float) -> None:
    watch = AlertWatch(AlertConfig())
    found = losses(watch, [*around(2.0, 50), height, *around(2.0, 30), 3.0, *around(2.0, 100)])
    assert found == [(51, "loss_spike", "checkpoint"), (82, "loss_spike", "checkpoint")]


def test_losses_that_are_not_finite_are_not_in_the_window() -> None:
    watch = watching(loss_spike=SPIKE)
    assert losses(watch, [2.0, math.nan, 2.0, math.inf, 2.0, math.nan, 2.0, math.nan, 2.0]) == []
    assert losses(watch, [3.0], start=10) == [(10, "loss_spike", "checkpoint")]


# Divergence


def test_a_divergence_is_raised_once_and_named() -> None:
    watch = watching(divergence=DIVERGENCE)
    assert losses(watch, [3.0, 2.5, 2.0, 2.0, 2.0, 2.0, 2.0]) == []  # the median of five is 2 from step 5 on
    assert losses(watch, [3.0] * 4, start=8) == []  # the median of five is 3 from step 10 on
    alert = only(watch.check_loss(12, 3.0, 1.0))
    assert (alert.alert, alert.action, alert.value, alert.threshold) == ("divergence", "checkpoint", 1.0, 0.5)
    assert alert.message == (
        "The smoothed loss is 3, 1 nats above its best of 2 at step 5, and has been more than 0.5 above it for 3 steps in a "
        "row. The training is undoing what it learnt; lower the learning rate, or widen the format of the layers with the "
        "lowest grad_cos_sim."
    )
    assert losses(watch, [3.0] * 20 + [2.0] * 5, start=13) == []
    assert losses(watch, [3.0] * 5, start=38) == [(42, "divergence", "checkpoint")]


@pytest.mark.parametrize(
    "values",
    [
        [2.0, 1e30] * 2 + [2.0] * 40,  # a median does not remember
        [2.0] * 20 + [2.4] * 40,  # within the margin
        [9.0, 9.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0],  # one lucky batch
        [5.0 - 0.01 * step for step in range(100)],
    ],
)
def test_what_is_no_divergence(values: list[float]) -> None:
    assert losses(watching(divergence=DIVERGENCE), values) == []


def test_two_steps_beyond_are_not_three() -> None:
    watch = watching(divergence=DivergenceRule(threshold=0.5, patience=3, window=1))
    assert losses(watch, [2.0, 3.0, 3.0] * 20) == []
    assert losses(watch, [3.0], start=61) == [(61, "divergence", "checkpoint")]


def test_the_default_divergence_needs_fifty_steps() -> None:
    values = around(2.0, 60) + around(2.6, 200)
    (found,) = losses(watching(divergence=DivergenceRule()), values)
    assert found == (60 + 13 + 49, "divergence", "checkpoint"), "13 of 25 are above, then 50 such steps"


# Resume


def rate_series(metric: str) -> list[Callable[[AlertWatch, int], list[Alert]]]:
    values = [0.0, 0.6, math.nan, 0.6, 0.7, 0.1, 0.8, 0.8, 0.8, None, 0.8, 0.0, 0.9, 0.9]
    return [
        lambda watch, step, v=v: watch.check_rates({} if v is None else rates(metric, v, a=v)) for v in values
    ]  # fmt: skip


def loss_series(values: list[float], norms: dict[int, float] | None = None) -> list[Callable[..., list[Alert]]]:
    return [
        lambda watch, step, value=value: watch.check_loss(step, value, (norms or {}).get(step, 1.0)) for value in values
    ]


bad = math.nan
SERIES: dict[str, tuple[dict[str, Any], list[Callable[[AlertWatch, int], list[Alert]]], int]] = {
    "nan": ({"nan": NanRule(patience=2, action="checkpoint")},
            loss_series([1, bad, bad, 1, bad, 1, bad, bad, 1, 1, bad, bad, 1, bad, bad, bad], {4: math.inf, 9: bad}), 4),
    "nan_patience": ({"nan_patience": NanRule(patience=3, action="stop")},
                     loss_series([1, bad, bad, 1, bad, bad, bad, bad, 1, bad, bad, bad]), 2),
    "non_finite": ({"non_finite": CountRule(patience=2, action="checkpoint")},
                   [lambda watch, step, n=n: watch.check_rates({} if n is None else {"nan_count/a": n})
                    for n in (0, 1, 1, None, 1, 0, 2, None, 2, 2, 0, 1, 0, 1, 1, 0, 1, 1)], 4),
    "loss_spike": ({"loss_spike": SpikeRule(threshold=5.0, window=6, min_losses=4, patience=2, action="checkpoint")},
                   loss_series([*around(2, 8), 3, 3, 3, 2, bad, 4, 4, *around(2, 6), 3, bad, 3, 2, *around(1, 7), 2, 2,
                                *around(1, 9), 2, 2]), 4),
    "divergence": ({"divergence": DIVERGENCE, "loss_spike": SPIKE},
                   loss_series([*around(2, 9), *around(3, 7), bad, *around(3, 3), *around(2, 7), *around(4, 9)]), 2),
    **{alert: ({alert: RateRule(threshold=0.5, patience=2, action="stop")}, rate_series(metric), 3)
       for alert, metric in (("bit_stall", "bit_stall_rate"), ("overflow", "overflow_rate"),
                             ("underflow", "underflow_rate"), ("dead_neurons", "dead_neuron_window_frac"))},
}  # fmt: skip


@pytest.mark.parametrize("alert", ALERTS)
def test_killed_at_any_step_and_resumed_it_raises_what_it_would_have(alert: str) -> None:
    rules, checks, expected = SERIES[alert]

    def alerts(watch: AlertWatch, first: int, last: int) -> list[str]:
        return [repr((n + 1, found)) for n in range(first, last) for found in checks[n](watch, n + 1)]

    straight = watching(**rules)
    whole = alerts(straight, 0, len(checks))
    assert sum(f"alert='{alert}'" in text for text in whole) == expected
    for index in range(len(checks) + 1):
        killed = watching(**rules)
        before = alerts(killed, 0, index)
        tensors, skeleton = tree.split({"alerts": killed.state_dict()})
        assert tensors == {}
        alerts(killed, index, len(checks))  # what it did after the checkpoint is lost
        resumed = watching(**rules)
        resumed.load_state_dict(tree.join({}, json.loads(json.dumps(skeleton)))["alerts"])
        assert before + alerts(resumed, index, len(checks)) == whole, index
        assert resumed.state_dict() == straight.state_dict()
        assert resumed.stop_reason == straight.stop_reason
