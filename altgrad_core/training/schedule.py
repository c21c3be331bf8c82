"""The learning rate: linear warmup, then a cosine down to the final rate."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Return the learning rate of ``step`` (1 to ``steps``).

    Rises linearly over the warmup and reaches ``peak`` at step ``warmup_steps``; then a half cosine falls to ``final`` at
    the last step. A run shorter than its warmup never leaves it.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))
