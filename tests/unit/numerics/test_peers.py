"""The same numbers as ml_dtypes, gfloat, torch's own casts and, for every mode, the scalar reference.

ml_dtypes and torch do not saturate as we do by default (NaN or Inf beyond the end, and ml_dtypes makes -0 of NaN in fp6
and fp4), so inputs are clamped first and NaN is set aside. All 2^32 inputs are ``benchmarks/exhaustive.py``'s.

gfloat rounds float64 arrays to any format in any mode, by frexp. Its ``sat=True`` is saturation ``finite``, its
``sat=False`` is ``none``; ``propagate`` is the first with infinities put back. Where it cannot serve, a test says why.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import FloatFormat, TableFormat, format_names, get_format
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.stochastic import Draw, random_bits
from altgrad_core.testing.exact import assert_same
from altgrad_core.testing.strategies import landmarks

PEERS = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}
TORCH = ["e5m2", "e4m3fn", "e4m3fnuz", "e5m2fnuz", "bf16", "fp16"]
GFLOAT = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
    "stochastic": gfloat.RoundMode.Stochastic,
}
RANDOM_PATTERNS = 10_000_000
DRAW = Draw(seed=7, step=11, name="peers")

warned = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")


def float_format(name: str) -> FloatFormat:
    found = get_format(name)
    assert isinstance(found, FloatFormat)
    return found


# ------------------------------------------------------------------------------------------ ml_dtypes and torch


@functools.cache
def random_patterns() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-(2**31), 2**31, (RANDOM_PATTERNS,), generator=generator).to(torch.int32).view(torch.float32)


def inputs(format: FloatFormat) -> Tensor:
    """Every bfloat16, every value, midpoint and neighbour, and numbers around the format's range."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    around = torch.randn(100_000, generator=torch.Generator().manual_seed(2)) * min(format.max_finite, 1e30) / 4
    return torch.cat([every, landmarks(format), around, around * 1e-4])


@warned
@pytest.mark.parametrize("name", PEERS)
def test_values_of_ml_dtypes(name: str) -> None:
    f = float_format(name)
    for x in (inputs(f), random_patterns()):
        theirs = x.clamp(-f.max_finite, f.max_finite).numpy().astype(PEERS[name]).astype(np.float32)
        expected = torch.from_numpy(theirs)
        if not f.has_nan:
            expected = torch.where(torch.isnan(x), math.nan, expected)
        assert_same_bits(quantize(x, f), expected, x)


@pytest.mark.parametrize("name", [name for name in PEERS if float_format(name).has_nan])
def test_overflow_of_ml_dtypes_is_saturation_none(name: str) -> None:
    f = float_format(name)
    for x in (inputs(f), random_patterns()):
        with np.errstate(over="ignore", invalid="ignore"):
            theirs = x.numpy().astype(PEERS[name]).astype(np.float32)
        assert_same_bits(quantize(x, f, saturation="none"), torch.from_numpy(theirs), x)


def assert_same_bits(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """As ``assert_same``, faster where all is well: one comparison of bits."""
    different = (got.view(torch.int32) != expected.view(torch.int32)).nonzero().flatten()
    assert_same(got[different], expected[different], x[different])


@pytest.mark.parametrize("name", [name for name in PEERS if float_format(name).bits <= 8])
def test_codes_of_ml_dtypes(name: str) -> None:
    f = float_format(name)
    codes = np.arange(2**f.bits, dtype=np.uint8)
    theirs = torch.from_numpy(codes.view(PEERS[name]).astype(np.float32))
    assert_same(decode(torch.from_numpy(codes), f), theirs, torch.from_numpy(codes))
    x = inputs(f)
    x = x[torch.isfinite(x)].clamp(-f.max_finite, f.max_finite)
    assert encode(x, f).tolist() == x.numpy().astype(PEERS[name]).view(np.uint8).tolist()


@pytest.mark.parametrize("name", TORCH)
def test_values_of_torch(name: str) -> None:
    f = float_format(name)
    assert f.torch_dtype is not None
    x = inputs(f)
    theirs = x.clamp(-f.max_finite, f.max_finite).to(getattr(torch, f.torch_dtype)).float()
    assert_same(quantize(x, f), theirs, x)


# ----------------------------------------------------------------------------------- every format in every mode


def grammar() -> list[str]:
    """Every ``e<E>m<M>`` and P3109 name of 3 to 16 bits that spells a format."""
    names = [
        f"e{e}m{m}{suffix}"
        for e, m in itertools.product(range(12), range(16))
        for suffix in ("", "fn", "fnuz", "f")
        if 3 <= 1 + e + m <= 16
    ]
    names += [
        f"binary{k}p{p}{sign}{domain}"
        for k in range(3, 16)
        for p in range(1, k + 1)
        for sign in "su"
        for domain in "ef"
    ]
    return [name for name in names if spells(name)]


def spells(name: str) -> bool:
    try:
        return isinstance(get_format(name), FloatFormat)
    except AltgradError:
        return False


def sample() -> list[str]:
    """Names for the quick run: a spread over the grammar, its extremes, the 8-bit splits, and what is registered."""
    splits = [f"e{e}m{7 - e}f" for e in range(8)]
    registered = [name for name in format_names() if spells(name) and float_format(name).bits <= 16]
    narrow = [name for name in grammar() if float_format(name).bits <= 11]
    return sorted({*splits, *registered, *narrow[::9], "e1m0", "e11m0fn", "binary13p2se"})


def points(f: FloatFormat) -> Tensor:
    """Return all values, all midpoints, half the smallest, the overflow threshold, with their neighbours; specials.

    float32, with float32's neighbours, where all of these are float32 numbers, else float64.
    """
    exact = torch.tensor([f.magnitude(code) for code in range(f.max_code + 1)] + [f.beyond], dtype=torch.float64)
    exact = exact[torch.isfinite(exact)]
    exact = torch.cat([exact, exact[:-1] + exact.diff() / 2, torch.tensor([f.overflow_threshold])])
    exact = torch.cat([exact, torch.tensor([math.pi, 2.0**-149, 2.0**-126 - 2.0**-149, 2.0**-126, 3.4e38])])
    single = exact.float()
    x = single if bool((single.double() == exact)[:-5].all()) else exact
    infinity = torch.tensor(math.inf, dtype=x.dtype)
    x = torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity).abs()]).unique()
    x = torch.cat([x, torch.tensor([math.inf, math.nan], dtype=x.dtype)])
    return torch.cat([x, -x])


def their_format(f: FloatFormat) -> gfloat.FormatInfo:
    return gfloat.FormatInfo(
        name=f.name,
        k=f.bits,
        precision=f.mantissa_bits + 1,
        bias=f.bias,
        has_nz=f.has_negative_zero,
        domain=gfloat.Domain.Extended if f.has_inf else gfloat.Domain.Finite,
        num_high_nans=2 ** (f.exponent_bits + f.mantissa_bits) - 1 - f.max_code - int(f.has_inf),
        has_subnormals=True,
        is_signed=f.signed,
        is_twos_complement=False,
    )


def their_values(
    f: FloatFormat, x: Tensor, rounding: Rounding, saturation: Saturation, bits: Tensor | None = None, count: int = 0
) -> Tensor:
    info, wide = their_format(f), x.double().numpy()
    given = {} if bits is None else {"srbits": bits.numpy(), "srnumbits": count}
    saturates = saturation != "none" or not (f.has_inf or f.has_nan)
    with np.errstate(over="ignore"):  # a sum that leaves float64 becomes Inf, which is beyond the format as well
        rounded = gfloat.round_ndarray(info, wide, GFLOAT[rounding], sat=saturates, **given)
    result = torch.from_numpy(np.asarray(rounded))
    return torch.where(torch.isinf(x), x.double(), result) if saturation == "propagate" and f.has_inf else result


Kernels = Callable[[], Iterator[str]]


def check_against_gfloat(f: FloatFormat, kernels: Kernels) -> None:
    """Every value, midpoint and neighbour of the format in every deterministic mode, and stochastic with given bits."""
    x = points(f)
    x = x[(x == 0) | (x.double() / f.min_positive != 0)]  # see test_gfloat_loses_numbers_far_below_the_smallest_value
    if not f.signed:
        x = x[~torch.signbit(x)]  # see test_gfloat_has_no_answer_for_negative_numbers_in_unsigned_formats
    for rounding, saturation in itertools.product(ROUNDINGS[:-1], SATURATIONS):
        theirs = their_values(f, x, rounding, saturation)
        for _ in kernels():
            assert_same(quantize(x, f, rounding=rounding, saturation=saturation), theirs, x)
    for count, saturation in ((32, "none"), (32, "finite"), (9, "propagate"), (3, "none"), (1, "finite")):
        bits = random_bits(DRAW, x.shape) >> (32 - count)
        theirs = their_values(f, x, "stochastic", saturation, bits, count)
        for _ in kernels():
            got = quantize(x, f, rounding="stochastic", saturation=saturation, draw=DRAW, random_bits=count)
            assert_same(got, theirs, x)


def test_gfloat_loses_numbers_far_below_the_smallest_value(kernels: Kernels) -> None:
    """It divides by the unit in float64, where the quotient vanishes; rounded up such a number is the smallest value."""
    f = FloatFormat(name="all values above 1", exponent_bits=4, mantissa_bits=3, bias=-60)
    x = torch.tensor([5e-324], dtype=torch.float64)
    assert their_values(f, x, "up", "finite").item() == 0.0
    for _ in kernels():
        assert quantize(x, f, rounding="up").item() == f.min_positive
    assert quantize_exactly(5e-324, f, rounding="up") == f.min_positive


@pytest.mark.parametrize("name", sample())
def test_every_mode_against_gfloat(name: str, kernels: Kernels) -> None:
    check_against_gfloat(float_format(name), kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", grammar())
def test_every_mode_of_every_name_against_gfloat(name: str, kernels: Kernels) -> None:
    check_against_gfloat(float_format(name), kernels)


def check_against_reference(f: FloatFormat, limit: int, kernels: Kernels) -> None:
    x = points(f)
    x = torch.cat([x[:: len(x) // limit + 1], x[-40:], x[len(x) // 2 - 40 : len(x) // 2]])
    for rounding, saturation in itertools.product(ROUNDINGS, SATURATIONS):
        bits = random_bits(DRAW, x.shape).tolist()
        expected = [
            quantize_exactly(value, f, rounding=rounding, saturation=saturation, bits=b >> 24, random_bits=8)
            for value, b in zip(x.tolist(), bits, strict=True)
        ]
        got = quantize(x, f, rounding=rounding, saturation=saturation, draw=DRAW, random_bits=8)
        assert_same(got, torch.tensor(expected, dtype=torch.float64), x)


@pytest.mark.parametrize("name", sample())
def test_every_mode_against_the_scalar_reference(name: str, kernels: Kernels) -> None:
    check_against_reference(float_format(name), 60, kernels)


CUSTOM = [
    FloatFormat(name="all values above 1", exponent_bits=4, mantissa_bits=3, bias=-60),
    FloatFormat(name="down to float32's smallest", exponent_bits=4, mantissa_bits=3, specials="fn", bias=146),
    FloatFormat(name="up to float32's largest", exponent_bits=5, mantissa_bits=2, specials="none", bias=-96),
    FloatFormat(name="large fixed point", exponent_bits=0, mantissa_bits=7, specials="fnuz", bias=-30),
    FloatFormat(name="small fixed point", exponent_bits=1, mantissa_bits=6, specials="none", bias=140),
    FloatFormat(name="large powers of two", exponent_bits=3, mantissa_bits=0, specials="none", bias=-100),
    FloatFormat(name="odd powers of two", exponent_bits=7, mantissa_bits=0, specials="none", bias=62),
    FloatFormat(name="unsigned ieee", exponent_bits=4, mantissa_bits=4, signed=False),
    FloatFormat(name="unsigned fn", exponent_bits=5, mantissa_bits=3, specials="fn", signed=False),
    FloatFormat(name="beyond float32", exponent_bits=5, mantissa_bits=3, bias=-120),
]


@pytest.mark.parametrize("f", CUSTOM, ids=[f.name for f in CUSTOM])
def test_formats_without_a_name_in_every_mode(f: FloatFormat, kernels: Kernels) -> None:
    check_against_gfloat(f, kernels)
    check_against_reference(f, 100, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", grammar())
def test_every_mode_of_every_name_against_the_scalar_reference(name: str, kernels: Kernels) -> None:
    f = float_format(name)
    check_against_reference(f, 2000 if f.bits <= 8 else 60, kernels)  # all points up to 8 bits


@pytest.mark.parametrize("name", [name for name in sample() if float_format(name).fits_bfloat16])
def test_bfloat16_inputs_against_gfloat(name: str, kernels: Kernels) -> None:
    f = float_format(name)
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    if not f.signed:
        x = x[~torch.signbit(x)]
    for rounding in ROUNDINGS[:-1]:
        expected = their_values(f, x.float(), rounding, "none")
        for _ in kernels():
            assert_same(cast(x, f, rounding=rounding, saturation="none", dtype=torch.bfloat16)[0], expected, x)


# -------------------------------------------------------------------------------------------- P3109's value sets


def theirs_of_p3109(name: str) -> gfloat.FormatInfo:
    k, rest = name.removeprefix("binary").split("p")
    sign = gfloat.Signedness.Signed if "s" in rest else gfloat.Signedness.Unsigned
    domain = gfloat.Domain.Extended if rest[-1] == "e" else gfloat.Domain.Finite
    return gfloat.formats.format_info_p3109(int(k), int(rest[:-2]), sign, domain)


def check_values_of_p3109(name: str) -> None:
    f, codes = float_format(name), torch.arange(2 ** float_format(name).bits)
    theirs = torch.from_numpy(gfloat.decode_ndarray(theirs_of_p3109(name), codes.numpy()))
    assert_same(torch.tensor(f.values(), dtype=torch.float64), theirs, codes)
    assert_same(decode(codes, f), theirs, codes)


@pytest.mark.parametrize("name", [name for name in grammar() if name.startswith("binary") and "15" not in name][::3])
def test_values_of_p3109(name: str) -> None:
    check_values_of_p3109(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in grammar() if name.startswith("binary")])
def test_values_of_every_p3109_name(name: str) -> None:
    check_values_of_p3109(name)


# ------------------------------------------------------------------------------------------------- table formats


def table_points(f: TableFormat) -> Tensor:
    """Return all numbers and midpoints of a table with their neighbours, and numbers beyond its ends; specials.

    float32 where it holds the table's numbers, else float64.
    """
    exact = torch.tensor(f.numbers, dtype=torch.float64)
    ends = torch.tensor(
        [1e-45, 2.0**-126, 1.0, 3.4e38, math.pi, *(2.0 * value for value in (f.max_finite, f.numbers[0]))]
    )
    x = torch.cat([exact, exact[:-1] + exact.diff() / 2, ends])
    x = x.float() if f.fits_float32 else x
    x = x[torch.isfinite(x)]
    infinity = torch.tensor(math.inf, dtype=x.dtype)
    x = torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity)])
    return torch.cat([x.unique(), -x, torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=x.dtype)])


@pytest.mark.parametrize("name", ["posit8", "takum8", "takum_linear8", "nf4", "int8", "e8m0fnu"])
def test_every_mode_of_table_formats_against_the_scalar_reference(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, TableFormat)
    x = table_points(f)
    bits = random_bits(DRAW, x.shape).tolist()
    for rounding, saturation in itertools.product(ROUNDINGS, SATURATIONS):
        expected = [
            quantize_exactly(value, f, rounding=rounding, saturation=saturation, bits=b >> 24, random_bits=8)
            for value, b in zip(x.tolist(), bits, strict=True)
        ]
        got = quantize(x, f, rounding=rounding, saturation=saturation, draw=DRAW, random_bits=8)
        assert_same(got, torch.tensor(expected, dtype=torch.float64), x)


@pytest.mark.parametrize("rounding", ROUNDINGS[:-1])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("int8", gfloat.formats.format_info_ocp_int8), ("e8m0fnu", gfloat.formats.format_info_ocp_e8m0)],
)
def test_gfloat_has_two_of_the_tables(name: str, theirs: gfloat.FormatInfo, rounding: Rounding) -> None:
    """OCP's MXINT8 elements and its scales, within their ranges; beyond, see below."""
    f = get_format(name)
    assert isinstance(f, TableFormat)
    x = table_points(f)
    x = x[(x >= f.numbers[0]) & (x <= f.max_finite)]
    expected = torch.from_numpy(gfloat.round_ndarray(theirs, x.double().numpy(), GFLOAT[rounding], sat=True))
    assert_same(quantize(x, f, rounding=rounding), expected, x)
    codes = torch.arange(2**f.bits)
    assert_same(decode(codes, f), torch.from_numpy(gfloat.decode_ndarray(theirs, codes.numpy())), codes)


# ------------------------------------------------------------------------------------- where an oracle is wrong


def test_gfloat_has_no_answer_for_negative_numbers_in_unsigned_formats() -> None:
    """It returns negative numbers, which are no values of the format; P3109 clamps to 0, or has NaN."""
    f = float_format("binary8p4ue")
    x = torch.tensor([-0.3, -1.0, -1e9])
    theirs = their_values(f, x, "nearest_even", "finite")
    assert (theirs < 0).all()
    assert quantize(x, f).tolist() == [0.0, 0.0, 0.0]
    assert torch.isnan(quantize(x, f, saturation="none")).all()


def test_gfloat_takes_e8m0_below_its_smallest_value() -> None:
    """Without subnormals its exponent is not bounded below; e8m0 ends at 2^-127 and has no zero."""
    x = torch.tensor([2.0**-130, 0.0])
    theirs = gfloat.round_ndarray(gfloat.formats.format_info_ocp_e8m0, x.double().numpy(), sat=True)
    assert theirs.tolist() == [2.0**-130, 0.0]
    assert quantize(x, "e8m0fnu").tolist() == [2.0**-127, 2.0**-127]


@warned
def test_ml_dtypes_rounds_ties_of_e8m0_up() -> None:
    """Ties go to the even code here, as with every other format of ml_dtypes; its e8m0 takes the greater value."""
    x = torch.tensor([1.5 * 2.0**exponent for exponent in range(-126, 127)])
    theirs = torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert_same(theirs, quantize(x, "e8m0fnu", rounding="nearest_away"), x)
    odd = quantize(x, "e8m0fnu") != theirs
    assert odd.tolist() == [exponent % 2 == 1 for exponent in range(-126, 127)]
    beside = torch.cat([torch.nextafter(x, torch.tensor(math.inf)), torch.nextafter(x, torch.tensor(0.0))])
    theirs = torch.from_numpy(beside.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert_same(quantize(beside, "e8m0fnu"), theirs, beside)


def test_torch_overflows_as_its_version_pleases() -> None:
    """e4m3fn: NaN up to torch 2.12, +-448 from 2.13; e5m2: Inf. Neither is an oracle of saturation: clamp before."""
    x = torch.tensor([465.0, 1e9])
    theirs = x.to(torch.float8_e4m3fn).float()
    assert (torch.isnan(theirs) | (theirs == 448.0)).all()
    assert quantize(x, "e4m3fn").tolist() == [448.0, 448.0]
    assert torch.isnan(quantize(x, "e4m3fn", saturation="none")).all()
