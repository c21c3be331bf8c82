"""``encode``, ``decode``, ``ordinal`` and ``ulp`` where the conformance suite does not reach."""

from __future__ import annotations

import math

import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.codes import NAN_ORDINAL, decode, encode, ordinal, ulp


def test_nan_needs_a_code() -> None:
    x = torch.tensor([1.0, math.nan])
    with pytest.raises(AltgradError, match=r"'e2m1fn' has no code for NaN .*nan_code="):
        encode(x, "e2m1fn")
    assert encode(x, "e2m1fn", nan_code=8).tolist() == [2, 8]
    assert encode(x, "e5m2", nan_code=0x7D).tolist() == [0x3C, 0x7D]
    with pytest.raises(AltgradError, match="nan_code for 'e2m1fn' is 0 to 15, got 16"):
        encode(x, "e2m1fn", nan_code=16)


@pytest.mark.parametrize("scale", [0.25, 0.3, torch.tensor(0.3)])
def test_scales(scale: float | torch.Tensor) -> None:
    x = torch.linspace(-2, 2, 41)
    codes = encode(x, "e4m3fn", scale=scale)
    assert torch.equal(
        decode(codes, "e4m3fn", scale=scale), decode(codes, "e4m3fn") * torch.tensor(0.3 if scale != 0.25 else 0.25)
    )
    error = (decode(codes, "e4m3fn", scale=scale) - x).abs()
    assert (error <= 0.5001 * ulp(x, "e4m3fn", scale=scale)).all()
    assert error.max() > 0


def test_codes_of_any_integer_dtype() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert decode(torch.tensor([0x78], dtype=dtype), "e4m3fn").tolist() == [256.0]
    assert decode(torch.tensor([-1], dtype=torch.int8).view(torch.uint8), "e0m7").tolist() == [-127 / 128]


def test_ordinals_run_through_the_values_in_order() -> None:
    for name in ("e5m2", "e4m3fn", "e4m3fnuz", "e2m1fn", "e0m7"):
        f = get_format(name)
        codes = torch.arange(2**f.bits)
        values = decode(codes, f)
        places = ordinal(codes, f)
        assert (places[torch.isnan(values)] == NAN_ORDINAL).all()
        number = ~torch.isnan(values)
        order = values[number].unique()  # one zero
        assert sorted(set(places[number].tolist())) == [int(i) for i in torch.arange(len(order)) - len(order) // 2]
        for place, value in zip(places[number].tolist(), values[number].tolist(), strict=True):
            assert order[place + len(order) // 2] == value


def test_ulp_is_the_distance_to_the_next_value() -> None:
    for name in ("e5m2", "e4m3fn", "e2m1fn", "e0m7", "e7m0", "e3m4"):
        f = get_format(name)
        places = torch.arange(0, f.max_code)
        here, following = decode(places, f), decode(places + 1, f)
        finite = torch.isfinite(following)
        got = ulp(here, f)[finite]
        assert torch.equal(got, (following - here)[finite])
        assert torch.equal(ulp(-here, f)[finite], got)


def test_ulp_at_the_ends() -> None:
    x = torch.tensor([0.0, 1e-30, 448.0, 1e30, math.inf, math.nan])
    assert ulp(x, "e4m3fn")[:5].tolist() == [2.0**-9, 2.0**-9, 32.0, 32.0, 32.0]
    assert math.isnan(ulp(x, "e4m3fn")[5])
    assert ulp(torch.tensor([1.0], dtype=torch.bfloat16), "fp32", scale=4.0).tolist() == [2.0**-23]
    assert ulp(torch.tensor(1.0), "e4m3fn", scale=torch.tensor(0.25)).item() == 0.125
