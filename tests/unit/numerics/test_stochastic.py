"""Stochastic rounding: unbiased by exact enumeration, bits that are uniform, and a function of their names alone."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spread import draws, formats, laws
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.roundings import round_to_grid
from altgrad_core.numerics.stochastic import Draw, random_bits
from altgrad_core.testing.exact import assert_same

SMALL = ["e2m1fn", "e4m3fn", "e7m0f", "e0m4f", "e8m1", "binary6p3se"]


def between(f: FloatFormat) -> Tensor:
    """Return numbers between neighbouring values, of both signs, at fractions that few and many bits tell apart."""
    codes = range(0, f.max_code, max(1, f.max_code // 12))
    fractions = [Fraction(k, 16) for k in range(1, 16)] + [Fraction(1, 4096), Fraction(4095, 4096), Fraction(683, 2048)]
    x = [
        float(Fraction(f.magnitude(code)) * (1 - part) + Fraction(f.magnitude(code + 1)) * part)
        for code in codes
        for part in fractions
    ]
    exact = torch.tensor(x, dtype=torch.float64)
    exact = exact[exact.float().double() == exact].float()
    return torch.cat([exact, -exact])


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("name", SMALL)
def test_mean_and_variance_over_all_draws(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """All 2^N draws, each once: the mean is x up to half of 2^-N of the spacing, exactly x where 2^N resolves it, and
    the variance that of the two neighbours."""
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    x = between(f)
    below, above = (quantize(x, f, rounding=mode).double() for mode in ("down", "up"))
    monkeypatch.setenv("ALTGRAD_KERNEL", "torch")  # the draws are put in by hand
    results = []
    for r in range(2**count):
        bits = torch.full(x.shape, r << (32 - count), dtype=torch.int64)
        q, _ = round_to_grid(x, grid_of(f), "stochastic", "finite", bits, count)
        results.append(q.double())
    q = torch.stack(results)
    assert ((q == below) | (q == above)).all()
    spacing, mean = above - below, q.mean(dim=0)
    assert ((mean - x.double()).abs() <= spacing * 2.0 ** -(count + 1)).all()
    share = (x.double() - below) / spacing * 2**count
    resolved = share == share.round()
    assert resolved.any()
    assert torch.equal(mean[resolved], x.double()[resolved])
    variance = (q - mean).square().mean(dim=0)
    assert torch.allclose(variance, (mean - below) * (above - mean), rtol=1e-12, atol=0.0)


@given(st.data(), formats, draws, st.integers(1, 32))
@laws
def test_a_value_of_the_format_never_moves(data: st.DataObject, f: FloatFormat, draw: Draw, count: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**f.bits - 1), min_size=1, max_size=40))
    x = torch.tensor([f.value(code) for code in codes])
    assert_same(quantize(x, f, rounding="stochastic", saturation="none", draw=draw, random_bits=count), x, x)


def test_full_width_is_unbiased_in_the_mean() -> None:
    """A million draws of one number: the mean lies within five of its standard deviations."""
    n = 2**20
    for x, below, above in ((1.03, 1.0, 1.125), (-300.0, -288.0, -320.0), (2.0**-12, 0.0, 2.0**-9)):
        q = quantize(torch.full((n,), x), "e4m3fn", rounding="stochastic", draw=Draw(seed=3, name=str(x))).double()
        share = (torch.tensor(x).double().item() - below) / (above - below)
        assert set(q.tolist()) == {below, above}
        assert abs((q == above).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / n)


def chi_square(counts: Tensor) -> float:
    """Return Pearson's statistic for equally likely cells, as standard deviations from its mean."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts.double() - expected).square() / expected).sum().item()
    degrees = counts.numel() - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


BITS = {
    "elements": random_bits(Draw(seed=0), (1000, 1000)),
    "elements past 2^32": random_bits(Draw(seed=0, start=(2**32, 0), columns=1000), (1000, 1000)),
    "seeds": torch.cat([random_bits(Draw(seed=s), (16,)) for s in range(4000)]),
    "steps": torch.cat([random_bits(Draw(seed=1, step=s), (16,)) for s in range(4000)]),
    "names": torch.cat([random_bits(Draw(seed=1, name=f"layers.{s}.x"), (16,)) for s in range(4000)]),
}


@pytest.mark.parametrize("over", BITS)
def test_bits_are_uniform_and_neighbours_independent(over: str) -> None:
    """Chi-square of every byte, of every pair of bits of neighbours, and of top bytes of neighbours: five deviations.

    Along elements a neighbour is the next one; along seeds, steps and names the same element of the next tensor.
    """
    bits = BITS[over].flatten()
    for shift in (0, 8, 16, 24):
        assert abs(chi_square(torch.bincount((bits >> shift) & 255, minlength=256))) < 5
    distances = (1, 2, 1000) if over.startswith("elements") else (16, 32, 1)
    for distance in distances:
        here, there = bits[:-distance], bits[distance:]
        assert abs(chi_square(torch.bincount((here >> 28) * 16 + (there >> 28), minlength=256))) < 5
        mixed = here ^ there
        ones = torch.stack([((mixed >> bit) & 1).sum() for bit in range(32)]).double()
        deviations = (ones - len(mixed) / 2) / math.sqrt(len(mixed) / 4)
        assert deviations.abs().max() < 5


def test_different_tensors_steps_and_seeds_draw_different_bits() -> None:
    made = [
        Draw(seed=seed, step=step, name=name) for seed in (0, 1, -1) for step in (0, 1, 2) for name in ("", "a", "b")
    ]
    # Texts that would run together were they only joined.
    made += [Draw(seed=1, step=11), Draw(seed=11, step=1), Draw(seed=0, step=0, name="0"), Draw(seed=0, name=" ")]
    drawn = [tuple(random_bits(draw, (8,)).tolist()) for draw in made]
    assert len(set(drawn)) == len(made)
    x = torch.full((1000,), 1.06)
    q = [quantize(x, "e4m3fn", rounding="stochastic", draw=draw) for draw in made]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(q, 2))
    assert torch.equal(quantize(x, "e4m3fn", rounding="stochastic", draw=made[0]), q[0])


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.tuples(st.integers(0, 11), st.integers(0, 39)),
    st.tuples(st.integers(1, 12), st.integers(1, 40)),
    st.sampled_from([0, 2**32 // 40 - 3, 2**33]),
    draws,
)
@laws
def test_a_shard_draws_as_the_whole(
    rows: int, columns: int, start: tuple[int, int], size: tuple[int, int], row: int, draw: Draw
) -> None:
    """Any rectangle of a matrix, wherever that lies (also across 2^32 elements), rounds as it does in the whole."""
    whole = Draw(seed=draw.seed, step=draw.step, name=draw.name, start=(row, 0))
    x = torch.linspace(-3.0, 3.0, rows * columns).reshape(rows, columns)
    q = quantize(x, "e3m2fn", rounding="stochastic", draw=whole)
    top, left = min(start[0], rows - 1), min(start[1], columns - 1)
    part = (slice(top, top + size[0]), slice(left, left + size[1]))
    place = Draw(seed=draw.seed, step=draw.step, name=draw.name, start=(row + top, left), columns=columns)
    assert torch.equal(quantize(x[part], "e3m2fn", rounding="stochastic", draw=place), q[part])
    assert torch.equal(random_bits(whole, x.shape)[part], random_bits(place, x[part].shape))


def test_a_draw_names_bits_by_integers() -> None:
    x = torch.full((8,), 1.03)
    for wrong in ({"seed": 1.0}, {"seed": 0, "step": "1"}):
        with pytest.raises(AltgradError, match=r"The (seed|step) of a Draw is an integer, got (1.0|'1'); pass int"):
            quantize(x, "e4m3fn", rounding="stochastic", draw=Draw(**wrong))
    with pytest.raises(AltgradError, match=r"elements numbered from 2\^63 on"):
        quantize(x, "e4m3fn", rounding="stochastic", draw=Draw(seed=0, start=(2**61, 0)))
    last = Draw(seed=0, start=(2**60 - 2, 0))
    assert quantize(x, "e4m3fn", rounding="stochastic", draw=last).shape == (8,)
