from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from altgrad_core.training.checkpoint import Checkpoints
from altgrad_core.training.config import TrainConfig
from altgrad_core.training.engine import Engine


def best_steps(losses: Sequence[float]) -> tuple[list[int], float]:
    """Return the steps that become the best when evaluations after each step give these losses, and the best loss."""
    engine = object.__new__(Engine)
    engine.train_config = TrainConfig(steps=len(losses), eval_every=1, optimizer=None)
    engine.checkpoint_every, engine.best_loss, engine.first_step = 0, math.inf, 0
    engine.checkpoints = Checkpoints(None, 1, print)
    found: list[int] = []
    engine.save = lambda kind, best: found.append(engine.step_number) if best else None
    for step, loss in enumerate(losses, 1):
        engine.step_number = step
        engine.evaluate = lambda loss=loss: loss
        engine._after_step()
    return found, engine.best_loss


@pytest.mark.parametrize(
    ("losses", "best", "loss"),
    [([3, 2, 2.5, 1], [1, 2, 4], 1), ([math.nan, 2, 1], [2, 3], 1), ([3, math.nan, 2, math.inf], [1, 3], 2)],
)
def test_a_nan_is_never_the_best_and_spoils_nothing(losses: list[float], best: list[int], loss: float) -> None:
    assert best_steps(losses) == (best, loss)
