import math
from collections import Counter

import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode
from altgrad_core.numerics.formats import BlockFormat
from altgrad_core.numerics.histograms import (
    LOWEST_EXPONENT,
    binade_histogram,
    code_histogram,
    exponent_histogram,
    used_numbers,
)
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.plugins import installed


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e2m1fn", "nf4", "binary8p3se"])
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero", "stochastic"])
def test_codes_are_counted_as_quantize_gives_values(name: str, rounding) -> None:
    x = torch.randn(4, 501, generator=torch.Generator().manual_seed(0)) * 3
    draw = Draw(seed=1)
    counts = code_histogram(x, name, scale=0.5, rounding=rounding, draw=draw)
    values = decode(torch.arange(2 ** get_format(name).bits), name, scale=0.5)
    expected = Counter(quantize(x, name, scale=0.5, rounding=rounding, draw=draw).flatten().tolist())
    found: Counter[float] = Counter()
    for value, count in zip(values.tolist(), counts.tolist()):
        if count:
            found[value] += count
    assert found == expected
    assert counts.sum() == x.numel()


def test_nan_counts_under_its_code_or_not_at_all() -> None:
    x = torch.tensor([1.0, math.nan, math.nan])
    assert code_histogram(x, "e5m2")[get_format("e5m2").nan_code] == 2
    assert code_histogram(x, "e2m1fn").sum() == 1


def test_blocks_and_block_formats() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([[1.0, 2.0], [0.5, 4.0], [1.0, 1.0]])
    parts = [
        code_histogram(x[i, 32 * j : 32 * j + 32], "e4m3fn", scale=float(scale[i, j])) for i in range(3) for j in (0, 1)
    ]
    assert torch.equal(code_histogram(x, "e4m3fn", scale=scale, block=(1, 32)), torch.stack(parts).sum(dim=0))
    assert code_histogram(x, "mxfp4").shape == (16,)
    assert code_histogram(x, "mxfp4").sum() == x.numel()
    for given in ({"scale": 2.0}, {"scale": torch.tensor(1.0)}, {"scale": scale, "block": (1, 32)}):
        with pytest.raises(AltgradError, match="'mxfp4' finds its own block scales; leave out scale and block"):
            code_histogram(x, "mxfp4", **given)
    with pytest.raises(AltgradError, match=r"got a tensor of shape \[64\]"):
        code_histogram(x, "e4m3fn", scale=torch.ones(64))


def test_exponents() -> None:
    x = torch.tensor([0.0, -0.0, math.inf, math.nan, 1.0, -1.5, 2.0**-149, 2.0**-126, 3.0e38, 0.99999994])
    counts = exponent_histogram(x)
    found = {place + LOWEST_EXPONENT: count for place, count in enumerate(counts.tolist()) if count}
    assert found == {0: 2, -149: 1, -126: 1, 127: 1, -1: 1}
    assert exponent_histogram(torch.tensor([1e300, 1e-300], dtype=torch.float64))[[0, -1]].tolist() == [1, 1]


def test_formats_too_wide_to_list_are_refused() -> None:
    with pytest.raises(AltgradError, match=r"up to 16 bits; 'tf32' has 19"):
        code_histogram(torch.ones(2), "tf32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exponents_of_every_dtype_are_those_of_frexp(dtype) -> None:
    x = (
        torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 2.0 ** torch.randint(-160, 130, (5, 300))
    ).to(dtype)
    expected = Counter(math.frexp(value)[1] - 1 for value in x.flatten().tolist() if value and math.isfinite(value))
    counts = exponent_histogram(x.t())
    assert {place + LOWEST_EXPONENT: count for place, count in enumerate(counts.tolist()) if count} == expected


def test_binades_are_those_of_the_quotients() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([[1.0, 0.75], [3.0, 2.0**-100], [1.0, 7.0]])
    parts = [binade_histogram(x[i, 32 * j : 32 * j + 32], scale=scale[i, j]) for i in range(3) for j in (0, 1)]
    assert torch.equal(binade_histogram(x, scale=scale, block=(1, 32)), torch.stack(parts).sum(dim=0))
    assert torch.equal(parts[2], exponent_histogram(x[1, :32] / 3))
    assert parts[2].sum() == 32


def _narrow() -> list[str]:
    formats = [get_format(name) for name in [*installed().names("format"), "e4m3b11fnuz", "e0m7", "e7m0", "e1m6"]]
    return [its.name for its in formats if not isinstance(its, BlockFormat) and its.bits <= 8 and its.fits_bfloat16]


@pytest.mark.parametrize("name", _narrow())
def test_used_numbers_are_those_with_a_code_that_was_used(name: str) -> None:
    """For each single number of a format, and for what a cast of many gives, NaN and infinities among them."""
    format = get_format(name)
    finite = torch.tensor(format.values(), dtype=torch.float64).isfinite()
    numbers = torch.tensor(format.values(), dtype=torch.float64)[finite]
    held = torch.stack([used_numbers(number.float().reshape(1), format) for number in numbers])
    assert held.sum(dim=1).tolist() == [1] * len(numbers)
    assert held.any(dim=0).sum() == used_numbers(numbers.bfloat16().repeat(3), format).sum() == len(numbers)
    assert used_numbers(torch.tensor([math.nan, math.inf, -math.inf]), format).sum() == 0
    assert used_numbers(torch.zeros(0), format).sum() == 0
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)) * format.max_finite
    x[:2] = torch.tensor([math.nan, -0.0])
    q, _ = cast(x, format)
    assert used_numbers(q, format).sum() == ((code_histogram(x, format) > 0) & finite).sum()
