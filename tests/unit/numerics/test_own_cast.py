"""A table with a cast of its own: what is the format's, and what stays the table's."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import Tensor

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import BlockFormat, TableFormat, get_format
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode
from altgrad_core.numerics.modes import ROUNDINGS
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.statistics import CastStatistics
from altgrad_core.numerics.stochastic import Draw

CALLS: list[Tensor] = []


def toward_one(y: Tensor) -> Tensor:
    """Takes the smaller of two values in magnitude."""
    CALLS.append(y)
    magnitude = torch.where(y.abs() < 1, 0.0, torch.where(y.abs() < 2, 1.0, 2.0))
    return torch.copysign(magnitude, y).to(y.dtype)


PLAIN = TableFormat(name="plain", table=(0.0, 1.0, 2.0, math.inf, -0.0, -1.0, -2.0, math.nan))
OWN = attrs.evolve(PLAIN, name="own", nearest=toward_one)


def test_between_the_ends_the_format_decides() -> None:
    x = torch.tensor([0.9, 1.9, -1.9, -0.3, 2.0, -2.0])
    assert quantize(x, OWN).tolist() == [0.0, 1.0, -1.0, -0.0, 2.0, -2.0]
    assert quantize(x, PLAIN).tolist() == [1.0, 2.0, -2.0, -0.0, 2.0, -2.0]
    assert torch.signbit(quantize(x, OWN)).tolist() == [False, False, True, True, False, True]
    assert quantize(x * 8, OWN, scale=8.0).tolist() == [0.0, 8.0, -8.0, -0.0, 16.0, -16.0]
    assert decode(encode(x, OWN), OWN).tolist() == quantize(x, OWN).tolist()


def test_beyond_the_ends_and_of_nan_the_table_decides() -> None:
    x = torch.tensor([2.5, -2.5, math.inf, -math.inf, math.nan])
    for saturation in ("finite", "propagate", "none"):
        got, expected = (quantize(x, f, saturation=saturation).tolist() for f in (OWN, PLAIN))
        assert repr(got) == repr(expected)
    CALLS.clear()
    quantize(x, OWN)
    assert all(((y >= -2) & (y <= 2)).all() for y in CALLS), "it is asked for numbers between the ends alone"


def test_the_other_roundings_are_the_tables() -> None:
    x = torch.linspace(-3, 3, 101)
    for rounding in set(ROUNDINGS) - {"nearest_even"}:
        got, expected = (quantize(x, f, rounding=rounding, draw=Draw(seed=1)) for f in (OWN, PLAIN))
        assert torch.equal(got, expected), rounding


def test_statistics_and_bfloat16() -> None:
    x = torch.tensor([0.9, 1.9, 2.5, 0.0])
    q, vector = cast(x, OWN, statistics=True)
    assert q.dtype is torch.bfloat16
    statistics = CastStatistics.from_values(vector.tolist())
    assert (statistics.overflow, statistics.underflow) == (1, 1)
    assert torch.equal(quantize(x.bfloat16(), OWN).float(), quantize(x.bfloat16().float(), OWN))


def test_the_tensor_is_not_the_callers() -> None:
    x = torch.tensor([0.5, 1.5])
    quantize(x, attrs.evolve(OWN, nearest=lambda y: y.zero_()))
    assert x.tolist() == [0.5, 1.5]


@pytest.mark.parametrize("nearest", [lambda y: y.double(), lambda y: y.reshape(-1), lambda y: y[..., :1]])
def test_another_shape_or_dtype(nearest: object) -> None:
    with pytest.raises(AltgradError, match=r"'wrong': nearest\(\) returns a tensor of its argument's shape and dtype"):
        quantize(torch.ones(2, 3), attrs.evolve(OWN, name="wrong", nearest=nearest))


def test_elements_of_blocks_and_layers() -> None:
    blocks = BlockFormat(name="mine", element=OWN, block=4, scale_format=get_format("e8m0fnu"))
    x = torch.tensor([[0.9, 1.9, 2.0, 0.3]])
    assert quantize(x, blocks).tolist() == [[0.0, 1.0, 2.0, 0.0]]
    model, _ = altgrad.convert(torch.nn.Linear(4, 2), {"input": "e5m2", "weight": "e5m2", "grad_output": "e5m2"})
    assert model(x).shape == (1, 2)


def test_the_reference_does_not_pretend() -> None:
    with pytest.raises(ValueError, match="'own' rounds to nearest in its own way"):
        quantize_exactly(0.9, OWN)
    assert quantize_exactly(0.9, OWN, rounding="down") == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled() -> None:
    x = torch.linspace(-3, 3, 1001)
    torch.compiler.reset()
    assert torch.equal(torch.compile(lambda t: quantize(t, OWN), fullgraph=True)(x), quantize(x, OWN))
