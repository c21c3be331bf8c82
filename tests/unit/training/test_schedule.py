from __future__ import annotations

import pytest

from altgrad_core.training.schedule import learning_rate


def rates(steps: int, warmup: int) -> list[float]:
    return [learning_rate(step, steps=steps, warmup_steps=warmup, peak=1.0, final=0.1) for step in range(1, steps + 1)]


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    assert rates(20, 4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_to_the_final_rate() -> None:
    r = rates(101, 1)
    assert r[-1] == pytest.approx(0.1)
    assert r[50] == pytest.approx(0.55)
    assert all(a > b for a, b in zip(r, r[1:]))


def test_without_warmup_and_shorter_than_warmup() -> None:
    assert rates(10, 0)[0] < 1.0
    assert rates(3, 10) == pytest.approx([0.1, 0.2, 0.3])
    assert rates(1, 0) == pytest.approx([0.1])
