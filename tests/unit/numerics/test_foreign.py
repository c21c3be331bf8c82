"""gfloat's descriptions of formats as definitions: the same values under the same codes."""

from __future__ import annotations

import itertools
import math

import gfloat
import gfloat.formats
import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import BlockFormat, FloatFormat, TableFormat, get_format

SMALL = [info for info in gfloat.formats.sample_formats if info.k <= 16]


def info(name: str, **changes: object) -> gfloat.FormatInfo:
    """Return a description like that of a signed 6-bit float with subnormals and all codes finite, but changed."""
    fields = dict(k=6, precision=3, bias=3, is_signed=True, domain=gfloat.Domain.Finite, has_nz=True, num_high_nans=0)
    return gfloat.FormatInfo(name, **{**fields, "has_subnormals": True, "is_twos_complement": False, **changes})


ODD = [
    info("two_nans", num_high_nans=2),
    info("no_subnormals", has_subnormals=False),
    info("no_subnormals_one_zero", has_subnormals=False, has_nz=False),
    info("unsigned_powers", is_signed=False, has_nz=False, has_subnormals=False, precision=1),
    info("unsigned_without_subnormals", is_signed=False, has_nz=False, has_subnormals=False),
    info("negative_zero_and_inf", domain=gfloat.Domain.Extended),
    info("nan_twice_over", domain=gfloat.Domain.Extended, num_high_nans=1, has_nz=False),
    info("fraction", precision=6, bias=1, is_twos_complement=True, has_nz=False),
]


@pytest.mark.parametrize("described", [*SMALL, *ODD], ids=lambda described: described.name)
def test_values(described: gfloat.FormatInfo) -> None:
    f = get_format(described)
    assert f.name == described.name
    theirs = [gfloat.decode_float(described, code).fval for code in range(2**described.k)]
    for code, (ours, value) in enumerate(zip(f.values(), theirs, strict=True)):
        assert (math.isnan(ours) and math.isnan(value)) or (ours, math.copysign(1, ours)) == (
            value,
            math.copysign(1, value),
        ), code


def test_what_becomes_a_float_format() -> None:
    tables = {described.name for described in [*SMALL, *ODD] if isinstance(get_format(described), TableFormat)}
    assert tables == {"ocp_e8m0", "ocp_int8", *(described.name for described in ODD)}


def test_beyond_a_table_the_codes_go_on() -> None:
    ours = {name: get_format(name) for name in ("int8", "e8m0fnu")}
    for name, described in (
        ("int8", gfloat.formats.format_info_ocp_int8),
        ("e8m0fnu", gfloat.formats.format_info_ocp_e8m0),
    ):
        imported, built_in = get_format(described), ours[name]
        assert isinstance(imported, TableFormat)
        assert isinstance(built_in, TableFormat)
        assert imported.beyond == built_in.beyond


def test_wide_ones() -> None:
    binary32 = get_format(gfloat.formats.format_info_binary32)
    assert isinstance(binary32, FloatFormat)
    assert binary32.constants == get_format("fp32").constants  # type: ignore[attr-defined]
    with pytest.raises(AltgradError, match="'binary64' has 11 exponent and 52 mantissa bits"):
        get_format(gfloat.formats.format_info_binary64)
    with pytest.raises(AltgradError, match=r"'wide' is no FloatFormat.* up to 16 bits; it has 20"):
        get_format(info("wide", k=20, precision=15, num_high_nans=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": 0}, "has a precision of 0, which is from 1 to what 6 bits leave"),
        ({"precision": 7}, "has a precision of 7"),
        (
            {"precision": 6, "is_twos_complement": True, "num_high_nans": 1},
            "two's complement, with more than signed integers",
        ),
        ({"precision": 6, "is_twos_complement": True, "domain": gfloat.Domain.Extended}, "two's complement, with more"),
        ({"precision": 7, "is_twos_complement": True, "is_signed": False}, "has a precision of 7|two's complement"),
        ({"precision": 6, "is_twos_complement": True, "has_subnormals": False}, "two's complement, with more"),
        ({"precision": 4, "is_twos_complement": True}, "two's complement, with more than signed integers"),
        ({"k": 3, "precision": 1, "num_high_nans": 3}, "codes for Inf and NaN that leave no value but zero"),
    ],
)
def test_descriptions_that_contradict_themselves(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(AltgradError, match=reason):
        get_format(info("odd", **changes))


def test_every_small_description_has_its_values_or_is_refused() -> None:
    """All fields of up to 5 bits: the values that gfloat decodes, under the same codes, or an error; never others."""
    kept = 0
    for k, precision, bias, nans in itertools.product(range(1, 6), range(7), (0, 3), range(4)):
        for signed, nz, subnormals, twos in itertools.product((True, False), repeat=4):
            for domain in gfloat.Domain:
                changes = {"k": k, "precision": precision, "bias": bias, "num_high_nans": nans, "domain": domain}
                changes |= {"is_signed": signed, "has_nz": nz, "has_subnormals": subnormals, "is_twos_complement": twos}
                described = info("any", **changes)
                try:
                    f = get_format(described)
                except AltgradError:
                    continue
                theirs = [float(gfloat.decode_float(described, code).fval) for code in range(2**k)]
                assert list(map(repr, f.values())) == list(map(repr, theirs)), changes
                kept += 1
    assert kept > 1000


@pytest.mark.parametrize("described", gfloat.formats.all_block_formats, ids=lambda described: described.name)
def test_blocks(described: gfloat.BlockFormatInfo) -> None:
    f = get_format(described)
    ours = get_format(described.name.replace("mxfp4_e2m1", "mxfp4"))
    assert isinstance(f, BlockFormat)
    assert isinstance(ours, BlockFormat)
    assert (f.block, f.bits_per_value, f.tensor_scale) == (ours.block, ours.bits_per_value, False)
    assert f.element.values()[:16] == ours.element.values()[:16]


@pytest.mark.parametrize("thing", [3, None, {"k": 8}])
def test_other_things_are_refused(thing: object) -> None:
    with pytest.raises(AltgradError, match="a name, a Format or a gfloat FormatInfo, got"):
        get_format(thing)
