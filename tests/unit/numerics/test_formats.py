"""Constants, names and refusals of ``FloatFormat``; nothing here needs torch."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import BlockFormat, FloatFormat, TableFormat, format_names, get_format, parse_format

# name: bits, bias, max, its code, threshold, whether the threshold rounds to max, min normal, min subnormal
CONSTANTS = {
    "e5m2": (8, 15, 57344, 0x7B, 61440, False, 2.0**-14, 2.0**-16),
    "e4m3fn": (8, 7, 448, 0x7E, 464, True, 2.0**-6, 2.0**-9),
    "e4m3": (8, 7, 240, 0x77, 248, False, 2.0**-6, 2.0**-9),
    "e4m3fnuz": (8, 8, 240, 0x7F, 248, False, 2.0**-7, 2.0**-10),
    "e5m2fnuz": (8, 16, 57344, 0x7F, 61440, False, 2.0**-15, 2.0**-17),
    "e4m3b11fnuz": (8, 11, 30, 0x7F, 31, False, 2.0**-10, 2.0**-13),
    "e3m4": (8, 3, 15.5, 0x6F, 15.75, False, 2.0**-2, 2.0**-6),
    "e2m3fn": (6, 1, 7.5, 0x1F, 7.75, False, 1.0, 2.0**-3),
    "e3m2fn": (6, 3, 28, 0x1F, 30, False, 2.0**-2, 2.0**-4),
    "e2m1fn": (4, 1, 6, 0x7, 7, False, 1.0, 0.5),
    "bf16": (16, 127, 3.3895313892515355e38, 0x7F7F, 255.5 * 2.0**120, False, 2.0**-126, 2.0**-133),
    "fp16": (16, 15, 65504, 0x7BFF, 65520, False, 2.0**-14, 2.0**-24),
    "tf32": (19, 127, 3.4011621342146535e38, 0x3FBFF, 4095 * 2.0**116, False, 2.0**-126, 2.0**-136),
    "fp32": (32, 127, 3.4028234663852886e38, 0x7F7FFFFF, (2 - 2.0**-24) * 2.0**127, False, 2.0**-126, 2.0**-149),
    "e0m7": (8, 1, 127 / 128, 0x7F, 127.5 / 128, False, None, 1 / 128),
    "e1m6": (8, 0, 127 / 32, 0x7F, 127.5 / 32, False, 2.0, 1 / 32),
    "e7m0": (8, 63, 2.0**64, 0x7F, 1.5 * 2.0**64, False, 2.0**-62, None),
    "e0m7f": (8, 1, 127 / 128, 0x7F, 127.5 / 128, False, None, 1 / 128),
    "e1m6f": (8, 0, 127 / 32, 0x7F, 127.5 / 32, False, 2.0, 1 / 32),
    "e2m5f": (8, 1, 7.875, 0x7F, 7.9375, False, 1.0, 2.0**-5),
    "e3m4f": (8, 3, 31, 0x7F, 31.5, False, 2.0**-2, 2.0**-6),
    "e4m3f": (8, 7, 480, 0x7F, 496, False, 2.0**-6, 2.0**-9),
    "e5m2f": (8, 15, 114688, 0x7F, 122880, False, 2.0**-14, 2.0**-16),
    "e6m1f": (8, 31, 1.5 * 2.0**32, 0x7F, 1.75 * 2.0**32, False, 2.0**-30, 2.0**-31),
    "e7m0f": (8, 63, 2.0**64, 0x7F, 1.5 * 2.0**64, False, 2.0**-62, None),
    "binary8p1se": (8, 64, 2.0**62, 0x7E, 1.5 * 2.0**62, True, 2.0**-63, None),
    "binary8p2se": (8, 32, 2.0**31, 0x7E, 1.25 * 2.0**31, True, 2.0**-31, 2.0**-32),
    "binary8p3se": (8, 16, 49152, 0x7E, 53248, True, 2.0**-15, 2.0**-17),
    "binary8p4se": (8, 8, 224, 0x7E, 232, True, 2.0**-7, 2.0**-10),
    "binary8p5se": (8, 4, 15, 0x7E, 15.25, True, 2.0**-3, 2.0**-7),
    "binary8p6se": (8, 2, 3.875, 0x7E, 3.90625, True, 0.5, 2.0**-6),
    "binary8p7se": (8, 1, 63 / 32, 0x7E, 63.25 / 32, True, 1.0, 2.0**-6),
    "binary8p1sf": (8, 64, 2.0**63, 0x7F, 1.5 * 2.0**63, False, 2.0**-63, None),
    "binary8p2sf": (8, 32, 1.5 * 2.0**31, 0x7F, 1.75 * 2.0**31, False, 2.0**-31, 2.0**-32),
    "binary8p3sf": (8, 16, 57344, 0x7F, 61440, False, 2.0**-15, 2.0**-17),
    "binary8p4sf": (8, 8, 240, 0x7F, 248, False, 2.0**-7, 2.0**-10),
    "binary8p5sf": (8, 4, 15.5, 0x7F, 15.75, False, 2.0**-3, 2.0**-7),
    "binary8p6sf": (8, 2, 3.9375, 0x7F, 3.96875, False, 0.5, 2.0**-6),
    "binary8p7sf": (8, 1, 127 / 64, 0x7F, 127.5 / 64, False, 1.0, 2.0**-6),
}
# name: element, scale, block, whether the tensor has a scale, bits per value
BLOCKS = {
    "mxfp8_e4m3": ("e4m3fn", "e8m0fnu", 32, False, 8.25),
    "mxfp8_e5m2": ("e5m2", "e8m0fnu", 32, False, 8.25),
    "mxfp6_e3m2": ("e3m2fn", "e8m0fnu", 32, False, 6.25),
    "mxfp6_e2m3": ("e2m3fn", "e8m0fnu", 32, False, 6.25),
    "mxfp4": ("e2m1fn", "e8m0fnu", 32, False, 4.25),
    "mxint8": ("int8", "e8m0fnu", 32, False, 8.25),
    "nvfp4": ("e2m1fn", "e4m3fn", 16, True, 4.5),
}
# name: bits, lowest, highest, smallest positive, NaN code
TABLES = {
    "int8": (8, -2.0, 127 / 64, 1 / 64, None),
    "e8m0fnu": (8, 2.0**-127, 2.0**127, 2.0**-127, 0xFF),
    "posit8": (8, -(2.0**24), 2.0**24, 2.0**-24, 0x80),
    "takum8": (8, -7.910256885566915e51, 7.910256885566915e51, 1.2641814475388326e-52, 0x80),
    "takum_linear8": (8, -(2.0**239), 2.0**239, 2.0**-239, 0x80),
    "nf4": (4, -1.0, 1.0, 0.07958029955625534, None),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    found = (f.bits, f.bias, f.max_finite, f.max_code, f.overflow_threshold, f.threshold_rounds_to_max)
    assert (*found, f.min_normal, f.min_subnormal) == CONSTANTS[name]


def test_every_registered_format_is_in_a_list_above() -> None:
    assert set(format_names()) <= {*CONSTANTS, *BLOCKS, *TABLES}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, TableFormat)
    assert (f.bits, f.min_finite, f.max_finite, f.min_positive, f.nan_code) == TABLES[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, BlockFormat)
    assert (f.element.name, f.scale_format.name, f.block, f.tensor_scale, f.bits_per_value) == BLOCKS[name]
    # What is said of values is said of the elements.
    e = f.element
    assert [f.value(code) for code in range(4)] == [e.value(code) for code in range(4)]
    for said in (
        "bits",
        "signed",
        "min_finite",
        "max_finite",
        "min_positive",
        "has_inf",
        "has_negative_inf",
        "has_nan",
    ):
        assert getattr(f, said) == getattr(e, said)
    for said in ("has_negative_zero", "inf_code", "nan_code", "fits_bfloat16", "fits_float32"):
        assert getattr(f, said) == getattr(e, said)


def test_impossible_blocks_are_refused() -> None:
    e2m1fn, mxfp4 = get_format("e2m1fn"), get_format("mxfp4")
    with pytest.raises(AltgradError, match="one element or more, got 0"):
        BlockFormat(name="mine", element=e2m1fn, scale_format=e2m1fn, block=0)
    with pytest.raises(AltgradError, match="'mxfp4' has blocks itself"):
        BlockFormat(name="mine", element=mxfp4, scale_format=e2m1fn, block=16)


@pytest.mark.parametrize(
    ("name", "inf", "nan"),
    [
        ("e5m2", [0x7C, 0xFC], [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]),
        ("e4m3fn", [], [0x7F, 0xFF]),
        ("e4m3", [0x78, 0xF8], [*range(0x79, 0x80), *range(0xF9, 0x100)]),
        ("e4m3fnuz", [], [0x80]),
        ("e2m1fn", [], []),
        ("e3m4f", [], []),
        ("binary8p4se", [0x7F, 0xFF], [0x80]),
        ("binary8p4sf", [], [0x80]),
        ("binary8p4uf", [], [0xFF]),
        ("binary3p1se", [3, 7], [4]),
        ("posit8", [], [0x80]),
        ("e8m0fnu", [], [0xFF]),
        ("int8", [], []),
        ("nf4", [], []),
    ],
)
def test_special_codes(name: str, inf: list[int], nan: list[int]) -> None:
    f = get_format(name)
    values = f.values()
    assert [code for code, value in enumerate(values) if math.isinf(value)] == inf
    assert [code for code, value in enumerate(values) if math.isnan(value)] == nan
    if inf:
        assert f.value(inf[0]) == math.inf
        assert f.value(inf[1]) == -math.inf


def test_an_unsigned_extended_format_has_one_infinity() -> None:
    assert get_format("binary8p4ue").value(0xFE) == math.inf
    assert math.isnan(get_format("binary8p4ue").value(0xFF))


def test_the_code_of_one_is_in_the_middle_of_p3109s_positive_codes() -> None:
    for bits in range(3, 12):
        for precision in range(1, bits):
            for domain in "ef":
                assert get_format(f"binary{bits}p{precision}s{domain}").value(2 ** (bits - 2)) == 1.0
                assert get_format(f"binary{bits}p{precision}u{domain}").value(2 ** (bits - 1)) == 1.0


def test_fp4_values() -> None:
    assert get_format("e2m1fn").values()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_fixed_point_and_e1m6_are_one_grid_up_to_a_power_of_two() -> None:
    fixed, float_ = get_format("e0m7").values(), get_format("e1m6").values()
    assert [4 * value for value in fixed] == float_


@pytest.mark.parametrize(
    ("name", "specials", "largest"),
    [
        ("e3m4", "ieee", 15.5),
        ("e3m4fn", "fn", 30.0),
        ("e3m4f", "none", 31.0),
        ("e3m2fn", "none", 28.0),
        ("e1m6", "none", 127 / 32),
        ("e7m0", "none", 2.0**64),
        ("e7m0fn", "fn", 2.0**63),
        ("e4m3fnuz", "fnuz", 240.0),
        ("e8m0fnuz", "fnuz", 2.0**127),
    ],
)
def test_a_suffix_pins_the_semantics(name: str, specials: str, largest: float) -> None:
    f = parse_format(name)
    assert f is not None
    assert (f.specials, f.max_finite) == (specials, largest)


@pytest.mark.parametrize(
    "name", ["", "e4", "e4m3fnu", "E4M3", "e04m3", "e4m3b11fnuz", "e8m0fnu", "bf16", "e4m3 ", "xe4m3"]
)
def test_other_names_are_not_the_grammars(name: str) -> None:
    assert parse_format(name) is None


def test_the_eight_splits_of_eight_bits_exist_in_both_spellings() -> None:
    for exponent in range(8):
        f = get_format(f"e{exponent}m{7 - exponent}f")
        assert f.bits == 8
        assert sum(not math.isfinite(value) for value in f.values()) == 0
        assert get_format(f"e{exponent}m{7 - exponent}").bits == 8


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("e5m2", True),
        ("e4m3fn", True),
        ("bf16", True),
        ("fp16", False),
        ("tf32", False),
        ("e0m8f", True),
        ("e0m9f", False),
        ("e1m8f", False),
        ("e8m7fnuz", False),
        ("e8m5fnuz", True),
        ("e7m0", True),
        ("e8m3f", False),
        ("int8", True),
        ("posit8", True),
        ("nf4", False),
        ("takum_linear8", False),
        ("mxfp4", True),
    ],
)
def test_fits_bfloat16(name: str, fits: bool) -> None:
    assert get_format(name).fits_bfloat16 is fits


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *(("e5m2", True), ("fp32", True), ("e8m3f", False), ("e8m0", False), ("e8m23fnuz", False), ("e11m4", False)),
        *(("takum8", False), ("takum_linear8", False), ("posit8", True), ("nf4", True), ("e8m0fnu", True)),
    ],
)
def test_fits_float32(name: str, fits: bool) -> None:
    assert get_format(name).fits_float32 is fits


def test_the_largest_value_may_be_the_last_binade_of_float64() -> None:
    f = get_format("e11m4fnuz")
    assert isinstance(f, FloatFormat)
    assert (f.max_finite, f.beyond) == (31 * 2.0**1019, math.inf)
    assert f.overflow_threshold == 63 * 2.0**1018


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("e12m2", "12 exponent and 2 mantissa bits; casts compute in float32 or float64"),
        ("e5m24", "up to 11 exponent bits and 23 mantissa bits"),
        ("e11m4f", r"spans 2\^-1026 to 2\^1024 and more; casts compute in float64 at the most"),
        ("e11m0", r"spans 2\^-1022 to 2\^1024 and more"),
        ("e0m0", "no value but zero"),
        ("e100000m2", "100000 exponent"),
        ("binary12p1ue", "12 exponent and 0 mantissa bits"),
        ("binary16p4se", "K of 3 to 15 bits and P of 1 to K; got K = 16, P = 4"),
        ("binary8p9uf", "got K = 8, P = 9"),
    ],
)
def test_what_float64_cannot_hold_is_refused(name: str, reason: str) -> None:
    with pytest.raises(AltgradError, match=reason):
        get_format(name)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(exponent_bits=1, mantissa_bits=6), "IEEE specials need 2 exponent bits"),
        (dict(exponent_bits=4, mantissa_bits=0), "IEEE specials need .* 1 mantissa bit"),
        (dict(exponent_bits=4, mantissa_bits=3, specials="fnuz", signed=False), "unsigned format lacks"),
        (dict(exponent_bits=4, mantissa_bits=3, specials="nan"), "specials is one of ieee, fn, fnuz, extended, none"),
        (dict(exponent_bits=4, mantissa_bits=3, bias=2000), "Choose another bias"),
        (dict(exponent_bits=4, mantissa_bits=3, bias=-1025), "Choose another bias"),
    ],
)
def test_impossible_formats_are_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(AltgradError, match=reason):
        FloatFormat(name="mine", **arguments)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("E4M3FN", "called 'e4m3fn' here"),
        ("float8_e5m2", "called 'e5m2' here"),
        ("torch.float8_e4m3fn", "called 'e4m3fn' here"),
        ("E4M3", "The E4M3 of .* hardware documents is 'e4m3fn' here .*; 'e4m3' here .* infinities"),
        ("fp8_e4m3", "E4M3 of the OCP specification .* is 'e4m3fn'"),
        ("float8_e4m3", "E4M3 of the OCP specification .* is 'e4m3fn'"),
        ("e4m3x", "E4M3 of the OCP specification .* is 'e4m3fn'"),
        ("e4m3nf", "Did you mean 'e4m3fn'"),
        ("e2m5nf", "Did you mean 'e2m5fn'"),
        ("pf16", "Did you mean 'fp16'"),
        ("bfloat16", "called 'bf16' here"),
        ("e4m3fnu", r"Did you mean 'e4m3fn(uz)?'\?"),
        ("p3109_k8p4se", "called 'binary8p4se' here"),
        ("Binary8p4se", "called 'binary8p4se' here"),
        ("float8_e8m0fnu", "called 'e8m0fnu' here"),
        ("mxfp8", "called 'mxfp8_e4m3' or 'mxfp8_e5m2' here"),
        ("takum_log8", "called 'takum8' here"),
        ("NF4", "called 'nf4' here"),
        ("posit9", "Did you mean 'posit8'"),
        ("nonsense", "binary<K>p<P>"),
        ("nonsense", "`altgrad formats` lists all; any e<E>m<M>"),
    ],
)
def test_unknown_names_get_advice(name: str, advice: str) -> None:
    with pytest.raises(AltgradError, match=f"Unknown format '{name}'.*{advice}") as caught:
        get_format(name)
    assert "`altgrad formats` lists all" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_registered_names_and_formats_pass_through() -> None:
    assert {"bf16", "fp16", "tf32", "fp32", "e5m2", "e4m3fn", "e4m3b11fnuz"} <= set(format_names())
    assert {f"e{e}m{7 - e}f" for e in range(8)} <= set(format_names())
    f = get_format("e5m2")
    assert get_format(f) is f


def test_a_registered_format_says_where_it_comes_from() -> None:
    for name in format_names():
        assert get_format(name).source, name


def test_codes_outside_the_range_have_no_value() -> None:
    with pytest.raises(ValueError, match="codes 0 to 255, got 256"):
        get_format("e5m2").value(256)
    with pytest.raises(ValueError, match="codes 0 to 15, got -1"):
        get_format("nf4").value(-1)


def test_formats_need_no_torch() -> None:
    code = (
        "import sys; from altgrad_core.numerics import get_format; get_format('e4m3fn').values(); "
        "from altgrad_core.cli.formats import formats; formats(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "e4m3fn" in done.stdout


def test_a_block_format_knows_its_scaling_and_scales_as_its_elements() -> None:
    for name, kind in (("mxfp8_e4m3", "mx"), ("mxint8", "mx"), ("nvfp4", "nvfp4")):
        found = get_format(name)
        assert isinstance(found, BlockFormat)
        assert found.scaling_kind == kind
        assert found.scale_target == found.element.max_finite
    tapered = BlockFormat(name="b", element=get_format("posit8"), scale_format=get_format("e8m0fnu"), block=32)
    assert tapered.scale_target == 8.0
