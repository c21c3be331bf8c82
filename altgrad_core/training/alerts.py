"""Alerts: what deserves attention, and what is done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.training.config import AlertConfig


@attrs.frozen(kw_only=True)
class Alert:
    """One finding."""

    alert: str
    """``nan``, ``bit_stall``, ``overflow`` or ``dead_neurons``."""
    action: str
    """``log``, ``checkpoint`` (an anomaly checkpoint is saved) or ``stop`` (the run ends)."""
    value: float
    """What was measured."""
    threshold: float
    """The limit it passed."""
    message: str
    """One sentence for the user."""


# alert -> (metric, what the metric is called in a sentence)
_RATES = {
    "bit_stall": ("bit_stall_rate", "bit-stall rate"),
    "overflow": ("overflow_rate", "overflow rate"),
    "dead_neurons": ("dead_neuron_frac", "dead-neuron fraction"),
}
# What keeps a user from drawing the wrong conclusion.
_KEPT = " Small updates still add up in the FP32 master weights until the cast value moves."
_KEPT_ON_AVERAGE = (
    " This run has no master copy of the weights, but it rounds them stochastically: on average no update is lost."
)
_LOST = ' Without a master copy of the weights these updates are lost; rounding = "stochastic" keeps them on average.'


class AlertWatch:
    """Watches a run's values. A rate warns when it rises past its threshold, again only after it has been below.

    ``weight_storage`` is the recipe's, since what a bit stall means depends on it.
    """

    def __init__(self, thresholds: AlertConfig, *, weight_storage: OperandCast | None = None) -> None:
        self.thresholds = thresholds
        stall = _KEPT
        if weight_storage is not None:
            stall = _KEPT_ON_AVERAGE if weight_storage.rounding == "stochastic" else _LOST
        self._notes = {"bit_stall": stall}
        self.nan_steps = 0
        """Non-finite steps in a row, up to now."""
        self.nan_total = 0
        """Non-finite steps of the whole run."""
        self._above: dict[str, bool] = {}

    def check_finite(self, loss: float, grad_norm: float) -> Alert | None:
        """Check the step's loss and gradient norm; the first non-finite step of the run asks for a checkpoint.

        ``nan_patience`` such steps in a row ask for a stop.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.nan_steps = 0
            return None
        self.nan_steps += 1
        self.nan_total += 1
        patience = self.thresholds.nan_patience
        what = "loss" if not math.isfinite(loss) else "gradient norm"
        value = loss if not math.isfinite(loss) else grad_norm
        message = f"The {what} is {value}; this update is skipped ({self.nan_steps} in a row, {patience} stop the run)."
        action = "checkpoint" if self.nan_total == 1 else "log"
        if self.nan_steps >= patience:
            action = "stop"
        return Alert(alert="nan", action=action, value=value, threshold=float(patience), message=message)

    def check_rates(self, metrics: Mapping[str, float]) -> list[Alert]:
        """Check the mean rates of a logged step and name the layer that is worst."""
        alerts = []
        for alert, (metric, words) in _RATES.items():
            value = metrics.get(metric)
            if value is None:
                continue
            threshold = getattr(self.thresholds, alert)
            above = value > threshold
            if above and not self._above.get(alert, False):
                layers = {name: v for name, v in metrics.items() if name.startswith(f"{metric}/") and not math.isnan(v)}
                worst = max(layers, key=layers.__getitem__)
                message = (
                    f"The mean {words} is {value:.2%}, above {threshold:.2%}; "
                    f"highest in {worst.removeprefix(f'{metric}/')} ({layers[worst]:.2%}).{self._notes.get(alert, '')}"
                )
                alerts.append(Alert(alert=alert, action="log", value=value, threshold=threshold, message=message))
            self._above[alert] = above
        return alerts

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, so that a resumed run warns and stops at the same steps."""
        return {"nan_steps": self.nan_steps, "nan_total": self.nan_total, "above": dict(self._above)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the counters."""
        self.nan_steps, self.nan_total = state["nan_steps"], state["nan_total"]
        self._above = dict(state["above"])
