"""Alerts: what deserves attention, and what is done about it. ``docs/alerts.md`` has the table with the reasons.

An alert is raised once an episode: at the check with which its condition has held ``patience`` times in a row, and again
only after a check at which it did not hold. A check is a step for what looks at the loss, a measurement for a rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.training.config import ALERTS, Action, AlertConfig, CountRule, RateRule, Rule
from altgrad_core.training.losses import LossHistory

ANOMALY_CHECKPOINTS = 3
"""How many checkpoints each alert may ask for in a run. They are kept for good: a loss that is NaN at every other step
must not fill the disk."""


@attrs.frozen(kw_only=True)
class Alert:
    """One finding."""

    alert: str
    """Its key in ``[alerts]``: ``nan``, ``loss_spike``, ``overflow``, ..."""
    action: Action
    """``log``, ``checkpoint`` (an anomaly checkpoint is saved) or ``stop`` (the run ends)."""
    value: float
    """What was measured."""
    threshold: float
    """The limit it passed; infinity for ``nan``."""
    message: str
    """What happened, what it means and what to do, for the user."""
    layer: str | None = None
    """The layer, or layer and operand, with the highest rate (``non_finite``: the first); None for what looks at the loss."""


# alert -> (metric, what the metric is called in a sentence, what it means and what to do)
_RATES = {
    "bit_stall": ("bit_stall_rate", "bit-stall rate", ""),  # what it means depends on where the weights are
    "overflow": (
        "overflow_rate",
        "overflow rate",
        " Clamped values distort what the GEMM computes; give that operand a format with more exponent bits, or a scale "
        'that follows it (scaling = "current").',
    ),
    "underflow": (
        "underflow_rate",
        "underflow rate",
        ' What becomes zero is lost to the GEMM; give that operand a scale that follows it (scaling = "current"), scales '
        'by block (scaling = "blockwise", or smaller blocks), or a format with more exponent bits.',
    ),
    "dead_neurons": (
        "dead_neuron_window_frac",
        "dead-neuron fraction",
        " They had no gradient in any of the last measurements and no longer learn; if the underflow rate of that "
        "layer's grad_output is high, it is the format, else lower the learning rate.",
    ),
}
_ON_CASTS = ("non_finite", "overflow", "underflow")
_END_OF_EPISODE = 0.9  # of the threshold
_AFTER_UPDATE = ("bit_stall",)  # what an update changes is known after it
# What keeps a user from drawing the wrong conclusion.
_KEPT = " Small updates still add up in the FP32 master weights until the cast value moves."
_KEPT_ON_AVERAGE = (
    " This run has no master copy of the weights, but it rounds them stochastically: on average no update is lost."
)
_LOST = ' Without a master copy of the weights these updates are lost; rounding = "stochastic" keeps them on average.'


class AlertWatch:
    """Watches a run's values.

    ``weight_storage`` is the recipe's, since what a bit stall means depends on it; ``casts``: whether the recipe casts
    anything, so that a wider format may be the remedy.
    """

    def __init__(self, rules: AlertConfig, *, weight_storage: OperandCast | None = None, casts: bool = True) -> None:
        self.rules = rules
        self.casts = casts
        self.skipped_updates = 0
        """Steps of the run with a loss or gradient norm that is not finite; their updates are skipped."""
        self.stop_reason = ""
        """The message of the alert that ends the run; empty while none does."""
        self._losses = LossHistory(rules.loss_spike, rules.divergence)
        self._held = dict.fromkeys(ALERTS, 0)  # checks in a row at which the condition held
        self._saved = dict.fromkeys(ALERTS, 0)  # checkpoints asked for
        self._stall = _KEPT
        if weight_storage is not None:
            self._stall = _KEPT_ON_AVERAGE if weight_storage.rounding == "stochastic" else _LOST

    def may_record(self, metrics: Mapping[str, float], *, casts_to_come: bool) -> bool:
        """Tell before an update, by what is measured until then, whether ``check_rates`` may ask for a recording after it.

        ``casts_to_come``: the statistics of casts after the update will join those in ``metrics``.
        """
        for alert in ("non_finite", *_RATES):
            rule: CountRule | RateRule | None = getattr(self.rules, alert)
            if rule is None or self._held[alert] != rule.patience - 1:
                continue
            records = rule.action == "stop" or (
                rule.action == "checkpoint" and self._saved[alert] < ANOMALY_CHECKPOINTS
            )
            unknown = alert in _AFTER_UPDATE or (casts_to_come and alert in _ON_CASTS)
            if records and (unknown or _measured(alert, metrics) > rule.threshold):
                return True
        return False

    def check_loss(self, step: int, loss: float, grad_norm: float) -> list[Alert]:
        """Check a step's loss (nats) and gradient norm, before its update; call it once for every step.

        An update whose loss or gradient norm is not finite is to be skipped, whatever this returns.
        """
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        self.skipped_updates += not finite
        found = self._check_nan(finite, loss, grad_norm)
        if math.isfinite(loss):  # the others say nothing on a loss that is no number: their counts stay
            found += self._check_spike(loss)
            self._losses.add(loss)
            found += self._check_divergence(step)
        return found

    def check_rates(self, metrics: Mapping[str, float]) -> list[Alert]:
        """Check the mean rates of a logged step; a rate that was not measured in it, or is NaN, is left alone."""
        found = self._check_non_finite(metrics)
        for alert, (metric, words, note) in _RATES.items():
            rule: RateRule | None = getattr(self.rules, alert)
            value = _measured(alert, metrics)
            if rule is None or math.isnan(value):
                continue
            # A rate that hovers about its threshold is one episode: it ends well below.
            limit = rule.threshold * (_END_OF_EPISODE if self._held[alert] >= rule.patience else 1)
            if not self._rises(alert, rule, value > limit):
                continue
            layers = {name: v for name, v in metrics.items() if name.startswith(f"{metric}/") and not math.isnan(v)}
            worst = max(layers, key=layers.__getitem__)
            layer = worst.removeprefix(f"{metric}/")
            for_long = f" for {rule.patience} measurements in a row" if rule.patience > 1 else ""
            message = (
                f"The mean {words} is {value:.2%}, above {rule.threshold:.2%}{for_long}; "
                f"highest in {layer} ({layers[worst]:.2%}).{note or self._stall}"
            )
            found.append(self._alert(alert, rule, value, rule.threshold, message, layer))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return counts and windows (JSON types), so that a resumed run raises the same alerts at the same steps."""
        return {
            "skipped_updates": self.skipped_updates,
            "stop_reason": self.stop_reason,
            "held": dict(self._held),
            "saved": dict(self._saved),
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back ``state_dict``."""
        self.skipped_updates, self.stop_reason = state["skipped_updates"], state["stop_reason"]
        self._held, self._saved = dict(state["held"]), dict(state["saved"])
        self._losses.load_state_dict(state["losses"])

    def _check_nan(self, finite: bool, loss: float, grad_norm: float) -> list[Alert]:
        what, value = ("gradient norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
        state = "NaN" if math.isnan(value) else "infinite"
        found = []
        rule = self.rules.nan
        if rule is not None and self._rises("nan", rule, not finite):
            for_long = f" for {rule.patience} steps in a row" if rule.patience > 1 else ""
            message = (
                f"The {what} is {state}{for_long}, so the update is skipped: weights and optimizer stay as they were. "
                "A single one does no harm; if more follow, lower the learning rate"
                f"{' or give the layers whose nan_count or inf_count is not zero a wider format' if self.casts else ''}."
            )
            found.append(self._alert("nan", rule, value, math.inf, message))
        rule = self.rules.nan_patience
        if rule is not None and self._rises("nan_patience", rule, not finite):
            skipped = f"{rule.patience} skipped updates in a row" if rule.patience > 1 else "a skipped update"
            message = (
                f"The {what} is {state}: {skipped} (nan_patience = {rule.patience}), and the weights do not change any more. "
                + (
                    "Lower the learning rate, lengthen the warmup, or give the layers whose nan_count or inf_count is not zero "
                    "a wider format."
                    if self.casts
                    else "Lower the learning rate or lengthen the warmup."
                )
            )
            found.append(self._alert("nan_patience", rule, float(rule.patience), float(rule.patience), message))
        return found

    def _check_non_finite(self, metrics: Mapping[str, float]) -> list[Alert]:
        rule, total = self.rules.non_finite, _measured("non_finite", metrics)
        if rule is None or math.isnan(total) or not self._rises("non_finite", rule, total > rule.threshold):
            return []
        counts = _non_finite(metrics)
        layer = next(name for name, count in counts.items() if count)
        for_long = f" for {rule.patience} measurements in a row" if rule.patience > 1 else ""
        message = (
            f"NaN or infinite elements before casts: {total:,.0f}, more than {rule.threshold:,g}{for_long}; first in "
            f"{layer} ({counts[layer]:,.0f}). A cast clamps infinities, so loss and gradient norm may look sound all the "
            "same; if a weight is not finite it stays so: go back to a checkpoint and lower the learning rate."
        )
        return [self._alert("non_finite", rule, total, rule.threshold, message, layer)]

    def _check_spike(self, loss: float) -> list[Alert]:
        rule = self.rules.loss_spike
        measured = None if rule is None else self._losses.deviations(loss)
        if rule is None or measured is None:
            return []
        deviations, median = measured
        if not self._rises("loss_spike", rule, deviations > rule.threshold):
            return []
        for_long = f" for {rule.patience} steps in a row" if rule.patience > 1 else ""
        message = (
            f"The loss is {loss:.4g}, {deviations:.3g} robust deviations above the median of {median:.4g} before it, "
            f"beyond {rule.threshold:g}{for_long}. An odd batch or too large an update; if the loss does not come back "
            "soon, lower the learning rate or train.grad_clip."
        )
        return [self._alert("loss_spike", rule, deviations, rule.threshold, message)]

    def _check_divergence(self, step: int) -> list[Alert]:
        rule = self.rules.divergence
        smoothed = None if rule is None else self._losses.smoothed(step)
        if rule is None or smoothed is None:
            return []
        assert self._losses.best is not None
        above = smoothed - self._losses.best
        if not self._rises("divergence", rule, above > rule.threshold):
            return []
        message = (
            f"The smoothed loss is {smoothed:.4g}, {above:.3g} nats above its best of {self._losses.best:.4g} at step "
            f"{self._losses.best_step}, and has been more than {rule.threshold:g} above it for {rule.patience} steps in a "
            "row. The training is undoing what it learnt; lower the learning rate"
            f"{', or widen the format of the layers with the lowest grad_cos_sim' if self.casts else ''}."
        )
        return [self._alert("divergence", rule, above, rule.threshold, message)]

    def _rises(self, alert: str, rule: Rule, holds: bool) -> bool:
        """Note a check; tell whether it is the one that raises the alert."""
        self._held[alert] = self._held[alert] + 1 if holds else 0
        return self._held[alert] == rule.patience

    def _alert(
        self, alert: str, rule: Rule, value: float, threshold: float, message: str, layer: str | None = None
    ) -> Alert:
        action = rule.action
        if action == "checkpoint":
            self._saved[alert] += 1
            if self._saved[alert] > ANOMALY_CHECKPOINTS:
                action = "log"
        if action == "stop" and not self.stop_reason:
            self.stop_reason = message
        return Alert(alert=alert, action=action, value=value, threshold=threshold, message=message, layer=layer)


def _measured(alert: str, metrics: Mapping[str, float]) -> float:
    """Return what an alert on a rate or a count compares with its threshold; NaN when it was not measured."""
    if alert == "non_finite":
        counts = _non_finite(metrics)
        return sum(counts.values()) if counts else math.nan
    return metrics.get(_RATES[alert][0], math.nan)


def _non_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the NaN and infinite elements by ``layer.operand``, in the order in which the step casts."""
    counts: dict[str, float] = {}
    for name, value in metrics.items():
        metric, _, layer = name.partition("/")
        if layer and metric in ("nan_count", "inf_count"):
            counts[layer] = counts.get(layer, 0.0) + value
    return counts
