"""The training losses so far, as the alerts on them see them.

Medians throughout: one absurd loss, 1e30 from a step that went wrong, must neither hide the next spike (as it does in a
standard deviation) nor look like a divergence for as long as a moving average remembers it.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from altgrad_core.training.config import DivergenceRule, SpikeRule

# 1 / the 75th percentile of the standard normal distribution: makes the MAD of normal noise its standard deviation.
_MAD_TO_DEVIATION = 1.4826
# The smallest deviation that a loss is measured by. Without it a flat loss (one batch learnt by heart) makes every
# hundredth of a percent a spike. A percent is what batches of one text differ by; a thousandth of a nat is for losses near 0.
_LEAST_DEVIATION = 0.01
_LEAST_DEVIATION_NATS = 0.001


class LossHistory:
    """The newest finite losses, and the best of their smoothed values."""

    def __init__(self, spike: SpikeRule | None, divergence: DivergenceRule | None) -> None:
        self._spike, self._divergence = spike, divergence
        windows = [rule.window for rule in (spike, divergence) if rule is not None]
        self._losses: deque[float] = deque(maxlen=max(windows, default=0))
        self.best: float | None = None
        """Lowest smoothed loss, in nats; None until a window is full."""
        self.best_step = 0
        """The step at which it was reached."""

    def deviations(self, loss: float) -> tuple[float, float] | None:
        """Return how many robust deviations ``loss`` is above the median of those before it, and that median.

        (loss - median) / (1.4826 MAD), with MAD the median distance from the median, over the window of the spike rule,
        and a deviation of at least 1 % of the median. None while there are fewer than ``min_losses``.
        """
        assert self._spike is not None
        before = list(self._losses)[-self._spike.window :]
        if len(before) < self._spike.min_losses:
            return None
        middle = statistics.median(before)
        distance = statistics.median(abs(one - middle) for one in before)
        least = max(_LEAST_DEVIATION * abs(middle), _LEAST_DEVIATION_NATS)
        return (loss - middle) / max(_MAD_TO_DEVIATION * distance, least), middle

    def add(self, loss: float) -> None:
        """Add the loss of a step; it must be finite."""
        self._losses.append(loss)

    def smoothed(self, step: int) -> float | None:
        """Return the median of the divergence rule's window, None while it is not full, and remember the lowest."""
        assert self._divergence is not None
        newest = list(self._losses)[-self._divergence.window :]
        if len(newest) < self._divergence.window:
            return None
        smoothed = statistics.median(newest)
        if self.best is None or smoothed < self.best:
            self.best, self.best_step = smoothed, step
        return smoothed

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the best (JSON types)."""
        return {"losses": list(self._losses), "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back ``state_dict``."""
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.best, self.best_step = state["best"], state["best_step"]
