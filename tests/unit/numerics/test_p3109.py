"""P3109's formats by name against gfloat's: all widths, precisions, signs and domains, every code."""

from __future__ import annotations

import math

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.codes import decode

LETTERS = {
    "s": gfloat.Signedness.Signed,
    "u": gfloat.Signedness.Unsigned,
    "e": gfloat.Domain.Extended,
    "f": gfloat.Domain.Finite,
}


@pytest.mark.parametrize("bits", range(3, 16))
def test_values_and_special_codes(bits: int) -> None:
    for precision in range(1, bits + 1):
        for letters in ("se", "sf", "ue", "uf"):
            sign, domain = (LETTERS[letter] for letter in letters)
            info = gfloat.formats.format_info_p3109(bits, precision, sign, domain)
            name = f"binary{bits}p{precision}{letters}"
            if info.expBits > 11:
                with pytest.raises(AltgradError, match=f"'{name}' has {info.expBits} exponent"):
                    get_format(name)
                continue
            f = get_format(name)
            assert isinstance(f, FloatFormat)
            theirs = gfloat.decode_ndarray(info, np.arange(2**bits))
            ours = decode(torch.arange(2**bits), f).double().numpy()
            assert np.array_equal(ours, theirs, equal_nan=True), name
            assert np.array_equal(np.signbit(ours[ours == 0]), np.signbit(theirs[theirs == 0])), name
            assert (f.bias, f.max_finite, f.nan_code) == (info.bias, info.max, info.code_of_nan)
            if f.has_inf:
                assert f.inf_code == info.code_of_posinf


def test_how_many_float64_does_not_hold() -> None:
    refused, names = 0, 0
    for bits in range(3, 16):
        for precision in range(1, bits + 1):
            for letters in ("se", "sf", "ue", "uf"):
                names += 1
                try:
                    get_format(f"binary{bits}p{precision}{letters}")
                except AltgradError:
                    refused += 1
    assert (refused, names) == (32, 468)


def test_signed_finite_formats_have_the_codes_of_fnuz() -> None:
    for name, other in (("binary8p3sf", "e5m2fnuz"), ("binary8p4sf", "e4m3fnuz")):
        pairs = zip(get_format(name).values(), get_format(other).values(), strict=True)
        assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
