"""Comparisons that forgive nothing, and the values that a cast should give, found without any of the casts' arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat, TableFormat


def same(a: Tensor, b: Tensor) -> Tensor:
    """Compare elementwise: equal numbers with equal signs (also of zeros), or NaN in both."""
    return (torch.isnan(a) & torch.isnan(b)) | ((a == b) & (torch.signbit(a) == torch.signbit(b)))


def assert_same(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Fail with the first few differing elements and the inputs they came from."""
    bad = ~same(got.double(), expected.double())
    shown = [
        f"{a!r} gave {b!r}, not {c!r}"
        for a, b, c in zip(x[bad][:5].tolist(), got[bad][:5].tolist(), expected[bad][:5].tolist(), strict=True)
    ]
    assert not bad.any(), f"{int(bad.sum())} of {bad.numel()} differ: {'; '.join(shown)}"


def assert_holds(law: Tensor, what: str, x: Tensor, *results: Tensor) -> None:
    """Fail with the first few elements of ``x`` for which the law (bool, its shape) does not hold, and their results."""
    shown = [
        f"{given!r} gave {', '.join(map(repr, came))}"
        for given, *came in zip(*(tensor[~law][:5].tolist() for tensor in (x, *results)), strict=True)
    ]
    assert law.all(), f"{what}; {int((~law).sum())} of {law.numel()} times not: {'; '.join(shown)}"


def numbers_and_codes(format: FloatFormat | TableFormat) -> tuple[Tensor, Tensor]:
    """Return the finite values in ascending order, float64 [n], zero once, and their codes or those without the sign."""
    if isinstance(format, TableFormat):
        return torch.tensor(format.numbers, dtype=torch.float64), torch.tensor(format.number_codes)
    positive = [format.magnitude(code) for code in range(format.max_code + 1)]
    numbers = (*(-value for value in reversed(positive[1:]) if format.signed), *positive)
    codes = (torch.arange(len(numbers)) - numbers.index(0.0)).abs()
    return torch.tensor(numbers, dtype=torch.float64), codes


def values_around(x: Tensor, format: FloatFormat | TableFormat) -> tuple[Tensor, Tensor]:
    """Return the last value at or below each finite number between the format's ends and the first at or above."""
    table, _ = numbers_and_codes(format)
    high = torch.searchsorted(table, x.double()).clamp_max(len(table) - 1)
    low = torch.where(table[high] == x.double(), high, (high - 1).clamp_min(0))
    return table[low], table[high]


def search_table(x: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the nearest values by looking through a list of all values: exact in float64, and unlike any kernel.

    Saturates; for formats of up to 20 bits whose values, like ``x``, are float32 numbers.
    """
    table, codes = numbers_and_codes(format)
    y = x.double().clamp(table[0], table[-1])
    high = torch.searchsorted(table, y.nan_to_num()).clamp(1, len(table) - 1)
    low = high - 1
    down, up = y - table[low], table[high] - y
    low_even, high_even = codes[low] % 2 == 0, codes[high] % 2 == 0
    tie_up = torch.where(low_even == high_even, table[high].abs() <= table[low].abs(), high_even)
    value = torch.where((up < down) | ((up == down) & tie_up), table[high], table[low])
    zero = torch.where(torch.signbit(x), -0.0, 0.0) if format.has_negative_zero else torch.zeros(())
    return torch.where(torch.isnan(x), math.nan, torch.where(value == 0, zero.double(), value))
