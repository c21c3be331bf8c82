"""``encode``, ``decode``, ``ordinal`` and ``ulp`` where the conformance suite does not reach."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.codes import (
    NAN_ORDINAL,
    all_values,
    decode,
    encode,
    neighbours,
    ordinal,
    pack,
    ulp,
    unpack,
)
from altgrad_core.numerics.stochastic import Draw


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


def test_scales_are_those_of_a_cast() -> None:
    """One for the tensor, or with ``block`` one for each block; no other shape is spread over the elements."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    codes = encode(x, "e4m3fn")
    for call in (encode, lambda t, f, **scale: decode(codes, f, **scale), ulp):
        for scale in (torch.full((8,), 2.0), torch.full((6, 1), 2.0), torch.full((1,), 2.0)):
            with pytest.raises(AltgradError, match=r"number or a 0-d tensor unless block=.* got a tensor of shape \["):
                call(x, "e4m3fn", scale=scale)
        with pytest.raises(AltgradError, match=r"needs a scale of shape \[3, 2\], one for each block; got 2.0"):
            call(x, "e4m3fn", scale=2.0, block=(2, 4))
        with pytest.raises(AltgradError, match="scale is a positive number"):
            call(x, "e4m3fn", scale=-1.0)
    scales = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    spread = scales.repeat_interleave(2, 0).repeat_interleave(4, 1)
    options = {"scale": scales, "block": (2, 4)}
    for name in ("e4m3fn", "posit8"):
        codes = encode(x, name, **options)
        assert torch.equal(decode(codes, name, **options), decode(codes, name) * spread)
        assert torch.equal(decode(codes, name, **options), quantize(x, name, **options))
        assert torch.equal(ulp(x, name, **options), ulp(x.double() * (1.0 / spread.double()).float(), name) * spread)


def test_codes_of_any_integer_dtype() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert decode(torch.tensor([0x78], dtype=dtype), "e4m3fn").tolist() == [256.0]
    assert decode(torch.tensor([-1], dtype=torch.int8).view(torch.uint8), "e0m7").tolist() == [-127 / 128]


def test_codes_are_integers_and_values_are_not() -> None:
    with pytest.raises(AltgradError, match=r"Codes are integers, got a tensor of torch.float32; encode\(\) makes"):
        decode(torch.tensor([1.0]), "e4m3fn")
    for call in (lambda t: ordinal(t, "e4m3fn"), lambda t: pack(t, 4)):
        with pytest.raises(AltgradError, match=r"Codes are integers, got a tensor of torch\.bool"):
            call(torch.tensor([True]))
    with pytest.raises(AltgradError, match=r"floating-point tensor, got torch\.int64"):
        encode(torch.tensor([1]), "e4m3fn")
    for wrong, count in ((torch.tensor([-1], dtype=torch.int8), 1), (torch.tensor([1], dtype=torch.uint8), -1)):
        with pytest.raises(AltgradError, match=r"Packed codes are bytes, torch.uint8, .* got torch.u?int8 and count"):
            unpack(wrong, 3, count)


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


def test_rounding_and_saturation_reach_the_codes() -> None:
    x = torch.tensor([1.1, -1.1, 1000.0])
    assert encode(x, "e4m3fn", rounding="up").tolist() == [0x39, 0xB8, 0x7E]
    assert encode(x, "e4m3fn", rounding="down").tolist() == [0x38, 0xB9, 0x7E]
    assert encode(x, "e4m3fn", saturation="none").tolist() == [0x39, 0xB9, 0x7F]
    drawn = encode(torch.full((4096,), 1.03125), "e4m3fn", rounding="stochastic", draw=Draw(seed=3)).double()
    assert drawn.mean().item() == pytest.approx(0x38 + 0.25, abs=0.03)


def test_the_elements_of_a_block_format_have_no_codes_of_their_own() -> None:
    with pytest.raises(AltgradError, match=r"'mxfp4' is a BlockFormat.*numerics.blocks"):
        encode(torch.ones(32), "mxfp4")


def test_neighbours_by_hand() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, 1.2, -1.2, 6.0, 7.0, -6.0, math.inf, -math.inf])
    below, above = neighbours(x, "e2m1fn")
    nan = math.nan
    assert below.tolist() == pytest.approx([-0.5, -0.5, 0.5, 1.0, -1.5, 4.0, 6.0, nan, 6.0, nan], nan_ok=True)
    assert above.tolist() == pytest.approx([0.5, 0.5, 1.5, 1.5, -1.0, nan, nan, -4.0, nan, -6.0], nan_ok=True)
    below, above = neighbours(torch.tensor([57344.0, 1e9, -1e9, math.inf, math.nan]), "e5m2")
    assert below.tolist() == pytest.approx([49152.0, 57344.0, -math.inf, 57344.0, nan], nan_ok=True)
    assert above.tolist() == pytest.approx([math.inf, math.inf, -57344.0, nan, nan], nan_ok=True)
    below, above = neighbours(torch.tensor([-1.0, 0.0, 0.02]), "binary8p4uf")
    assert below[0].isnan()
    assert below[1].isnan()
    assert below[2] < 0.02 < above[2]
    assert above[:2].tolist() == [0.0, get_format("binary8p4uf").min_positive]


def test_neighbours_in_a_table() -> None:
    below, above = neighbours(torch.tensor([0.0, 0.5, -3.0, 1.0]), "nf4")
    assert below[:2].tolist() == [np.float32(-0.09105003625154495), np.float32(0.44070982933044434)]
    assert above[:3].tolist() == [np.float32(0.07958029955625534), np.float32(0.5626170039176941), -1.0]
    assert below[2].isnan()
    assert above[3].isnan()


def test_formats_wider_than_float32_have_float64_values() -> None:
    for name in ("takum8", "e11m3", "binary13p2se"):
        f = get_format(name)
        codes = torch.arange(2**f.bits)
        values = decode(codes, f)
        assert values.dtype is torch.float64
        exact = torch.tensor(f.values(), dtype=torch.float64)
        assert torch.equal(values.nan_to_num(), exact.nan_to_num())
        assert ulp(torch.tensor([1.0]), f).dtype is torch.float64


def test_ulp_of_float64s_smallest_numbers() -> None:
    f = get_format("binary13p2se")  # its smallest normal, 2^-1023, is a float64 subnormal
    x = torch.tensor([0.0, 2.0**-1023, 2.0**-1022, 1.0], dtype=torch.float64)
    assert ulp(x, f).tolist() == [2.0**-1024, 2.0**-1024, 2.0**-1023, 0.5]


def test_ulp_of_a_table_is_the_gap_away_from_zero() -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 0.9, 64.0, 3e7, -1e9, math.nan])
    got = ulp(x, "posit8")
    assert got[:7].tolist() == [2.0**-24, 0.125, 0.125, 0.0625, 16.0, 2.0**24 - 2.0**20, 2.0**24 - 2.0**20]
    assert got[7].isnan()
    assert ulp(torch.tensor([-1.0, 1.0, -2.0, -3.0]), "int8").tolist() == [1 / 64] * 4


def test_all_values() -> None:
    assert all_values("e2m1fn").tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert all_values("e3m1").tolist()[-3:] == [8.0, 12.0, math.inf]
    assert all_values("int8").tolist() == [i / 64 for i in range(-128, 128)]
    assert not torch.signbit(all_values("e4m3fn")[126])
    with pytest.raises(AltgradError, match=r"'fp32' has 2\^32 codes; values are listed for up to 20 bits"):
        all_values("fp32")


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing(bits: int) -> None:
    for count in (0, 1, 2, 3, 7, 8, 9, 100):
        codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(count))
        packed = pack(codes, bits)
        assert packed.dtype is torch.uint8
        assert torch.equal(unpack(packed, bits, count), codes)
        # By the definition: code i is the bits from i * bits of one long little-endian number.
        number = sum(code << (i * bits) for i, code in enumerate(codes.tolist()))
        assert bytes(packed.tolist()) == number.to_bytes((count * bits + 7) // 8, "little")


def test_packing_leaves_out_what_is_no_code() -> None:
    assert pack(torch.tensor([[0x1F, -1]]), 4).tolist() == [0xFF]
    assert pack(torch.tensor([[0x3A, 0x05]], dtype=torch.uint8), 4).tolist() == [0x5A]
    with pytest.raises(AltgradError, match="3 codes of 6 bits take 3 bytes, got 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), 6, 3)
    for wrong in (0, 9):
        with pytest.raises(AltgradError, match=f"1 to 8 bits, got {wrong}"):
            pack(torch.zeros(2, dtype=torch.int64), wrong)


def test_packed_fp4_is_torchs() -> None:
    """torch's float4_e2m1fn_x2 has the first of two values in the low half of the byte, as here."""
    x = torch.tensor([0.5, 6.0, -1.0, 2.0])
    assert pack(encode(x, "e2m1fn"), 4).tolist() == [0x71, 0x4A]


@pytest.mark.parametrize(
    "name", ["e5m2", "e4m3fn", "e4m3", "e3m4", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2fn", "e2m3fn", "e2m1fn"]
)
def test_codes_mean_what_ml_dtypes_says(name: str) -> None:
    f = get_format(name)
    dtype = getattr(ml_dtypes, f"float{f.bits}_{name}")
    theirs = np.arange(2**f.bits, dtype=np.uint8).view(dtype).astype(np.float64)
    ours = decode(torch.arange(2**f.bits), f).double().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours[ours == 0]), np.signbit(theirs[theirs == 0]))


def test_scale_codes_mean_what_ml_dtypes_says() -> None:
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert np.array_equal(decode(torch.arange(256), "e8m0fnu").double().numpy(), theirs, equal_nan=True)
