"""The rounding modes on numbers small enough to check by eye: both signs, ties, overflow in each direction, statistics."""

from __future__ import annotations

import math

import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.modes import ROUNDINGS, Rounding
from altgrad_core.numerics.statistics import CastStatistics
from altgrad_core.numerics.stochastic import Draw

INF, NAN = math.inf, math.nan


def same(got: list[float], expected: list[float]) -> bool:
    return all(
        (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        # e2m1fn has 0, 0.5, 1, 1.5, 2, 3, 4 and 6
        ("nearest_even", [0.0, 1.0, 2.0, 4.0, -0.0, -1.0, -2.0, -4.0, 1.5, -1.5]),
        ("nearest_away", [0.5, 1.0, 3.0, 6.0, -0.5, -1.0, -3.0, -6.0, 1.5, -1.5]),
        ("toward_zero", [0.0, 0.5, 2.0, 4.0, -0.0, -0.5, -2.0, -4.0, 1.5, -1.5]),
        ("up", [0.5, 1.0, 3.0, 6.0, -0.0, -0.5, -2.0, -4.0, 1.5, -1.5]),
        ("down", [0.0, 0.5, 2.0, 4.0, -0.5, -1.0, -3.0, -6.0, 1.5, -1.5]),
    ],
)
def test_ties_of_a_small_format(rounding: Rounding, expected: list[float]) -> None:
    x = torch.tensor([0.25, 0.75, 2.5, 5.0, -0.25, -0.75, -2.5, -5.0, 1.5, -1.5])
    assert same(quantize(x, "e2m1fn", rounding=rounding).tolist(), expected)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        # e5m2 ends at 57344; the next value would be 65536, their midpoint is 61440
        ("nearest_even", [57344, INF, INF, INF, -57344, -INF, -INF, -INF]),
        ("nearest_away", [57344, INF, INF, INF, -57344, -INF, -INF, -INF]),
        ("toward_zero", [57344, 57344, 57344, INF, -57344, -57344, -57344, -INF]),
        ("up", [INF, INF, INF, INF, -57344, -57344, -57344, -INF]),
        ("down", [57344, 57344, 57344, INF, -INF, -INF, -INF, -INF]),
    ],
)
def test_overflow_follows_the_direction(rounding: Rounding, expected: list[float]) -> None:
    """As in IEEE 754, what is rounded towards zero never becomes an infinity; infinities stay."""
    half = [57345.0, 61440.0, 1e30, INF]
    x = torch.tensor(half + [-value for value in half])
    assert same(quantize(x, "e5m2", rounding=rounding, saturation="none").tolist(), expected)
    clamped = quantize(x, "e5m2", rounding=rounding).tolist()
    assert clamped == [57344.0] * 4 + [-57344.0] * 4
    kept = quantize(x, "e5m2", rounding=rounding, saturation="propagate").tolist()
    assert kept == [57344.0] * 3 + [INF] + [-57344.0] * 3 + [-INF]


@pytest.mark.parametrize(
    ("rounding", "overflow", "underflow"),
    # The grid would go on 448, 480, 512: 450 and 465 lie beyond when they become 480, 1e9 always does.
    # 2^-11 is a quarter of the smallest value.
    [("nearest_even", 4, 2), ("nearest_away", 4, 2), ("toward_zero", 2, 2), ("up", 4, 1), ("down", 4, 1)],
)
def test_statistics_know_the_mode(rounding: Rounding, overflow: int, underflow: int) -> None:
    """``overflow`` counts what the unbounded grid would place beyond the end: 480, not 448, and so on."""
    x = torch.tensor([450.0, 465.0, 1e9, -450.0, -465.0, -1e9, 2.0**-11, -(2.0**-11), INF, NAN, 1.0])
    for dtype in (torch.float32, torch.float64):
        _, vector = cast(x.to(dtype), "e4m3fn", rounding=rounding, statistics=True)
        assert vector is not None
        seen = CastStatistics.from_values(vector.tolist())
        assert (seen.nan, seen.inf, seen.elements) == (1, 1, 11)
        assert seen.underflow == underflow
        assert seen.overflow == overflow


def test_one_random_bit_decides_by_quarters() -> None:
    """With one bit: below 1/4 of the spacing never up, above 3/4 always, between as the bit says."""
    draws = [Draw(seed=0, step=step) for step in range(40)]
    x = torch.tensor([1.0, 1.03, 1.06, 1.1, 1.125])  # the spacing of e4m3fn is 1/8
    results = torch.stack([quantize(x, "e4m3fn", rounding="stochastic", draw=d, random_bits=1) for d in draws])
    found = [set(column.tolist()) for column in results.t()]
    assert found == [{1.0}, {1.0}, {1.0, 1.125}, {1.125}, {1.125}]


def test_what_stochastic_rounding_needs() -> None:
    with pytest.raises(AltgradError, match=r"draw=Draw\(seed=\.\.\., step=\.\.\., name=\.\.\.\)"):
        quantize(torch.ones(2), "e5m2", rounding="stochastic")
    for count in (0, 33):
        with pytest.raises(AltgradError, match=f"random_bits is an integer from 1 to 32, got {count}"):
            quantize(torch.ones(2), "e5m2", rounding="stochastic", draw=Draw(seed=0), random_bits=count)
    with pytest.raises(AltgradError, match="does not lie in a tensor of 4 columns"):
        quantize(torch.ones(2, 3), "e5m2", rounding="stochastic", draw=Draw(seed=0, start=(0, 2), columns=4))
    with pytest.raises(AltgradError, match="Unknown rounding 'nearest'.*Known: " + ", ".join(sorted(ROUNDINGS))):
        quantize(torch.ones(2), "e5m2", rounding="nearest")  # type: ignore[arg-type]
