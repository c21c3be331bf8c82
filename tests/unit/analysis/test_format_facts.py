"""What follows from a format's values, and where it is native."""

from __future__ import annotations

import math

import pytest

from altgrad_core.analysis.formats.facts import binades, element_of, facts_of, number, positive_values
from altgrad_core.analysis.formats.hardware import NATIVE
from altgrad_core.analysis.formats.layout import Column, bars, fitting, lines, number_line
from altgrad_core.numerics import format_names, get_format

NAMES = [name for name in format_names() if get_format(name).bits <= 16]
GRAMMAR = ["e2m3", "e5m10fn", "e3m2fnuz", "e1m4f", "binary6p3ue", "binary10p4sf", "e11m2"]


@pytest.mark.parametrize("name", [*NAMES, *GRAMMAR])
def test_binades_count_every_value(name: str) -> None:
    format = get_format(name)
    values = positive_values(element_of(format))
    counted = dict(binades(format))
    assert sum(counted.values()) == len(values)
    for value in (values[0], values[len(values) // 2], values[-1]):
        e = math.frexp(value)[1] - 1
        assert counted[e] == sum(1 for v in values if math.frexp(v)[1] - 1 == e)


def test_binades_of_formats_too_wide_to_list() -> None:
    counted = binades(get_format("fp32"))
    assert counted[0] == (-149, 1)
    assert counted[23] == (-126, 2**23)
    assert counted[-1] == (127, 2**23)
    assert len(counted) == 277


@pytest.mark.parametrize(
    ("name", "bits", "significant", "binades", "specials"),
    [
        ("e4m3fn", 8, 4, math.log2(448 * 512), "NaN"),
        ("e5m2", 8, 3, math.log2(57344 * 65536), "Inf NaN"),
        ("e4m3fnuz", 8, 4, math.log2(240 * 1024), "NaN, no -0"),
        ("e0m7f", 8, 7, math.log2(127), "none"),
        ("e7m0f", 8, 1, 126, "none"),
        ("e8m0fnu", 8, 1, 254, "NaN, unsigned"),
        ("posit8", 8, 4, 48, "NaN, no -0"),
        ("nvfp4", 4.5, 2, math.log2(12), "none"),
        ("mxfp6_e2m3", 6.25, 4, math.log2(60), "none"),
    ],
)
def test_facts(name: str, bits: float, significant: float, binades: float, specials: str) -> None:
    facts = facts_of(get_format(name))
    assert facts.bits == bits
    assert facts.significant_bits == pytest.approx(significant)
    assert facts.digits == pytest.approx(significant * math.log10(2))
    assert facts.binades == pytest.approx(binades)
    assert facts.range_db == pytest.approx(20 * math.log10(2**binades))
    assert facts.specials == specials


def test_the_relative_error_of_normals_is_half_an_ulp() -> None:
    assert facts_of(get_format("e4m3fn")).relative_error == 2**-4
    assert facts_of(get_format("bf16")).relative_error == 2**-8
    assert facts_of(get_format("e0m7f")).relative_error is None
    assert facts_of(get_format("nf4")).relative_error is None


def test_hardware_names_formats_that_exist() -> None:
    assert set(NATIVE) <= set(format_names())
    for native in NATIVE.values():
        assert native.short
        assert native.full
        assert native.source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (448.0, "448"),
        (2.0**-16, "2^-16"),
        (-(2.0**-16), "-2^-16"),
        (1.75 * 2.0**-14, "1.75*2^-14"),
        (-1.75 * 2.0**-14, "-1.75*2^-14"),
        (3.3895313892515355e38, "3.38953e+38"),
        (float("inf"), "Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
        (None, "-"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_table_leaves_out_what_does_not_fit() -> None:
    columns = [
        Column("name", lambda row: row[0], left=True),
        Column("a\nb", lambda row: row[1], rank=2),
        Column("text", lambda row: row[2], left=True, rank=1, least=6),
    ]
    rows = [("x", "1", "a long sentence"), ("yy", "22", "short")]
    assert [line for line, _ in lines(fitting(columns, rows, 40), [("", rows)], 40)] == [
        "       a",
        "name   b  text",
        "x      1  a long sentence",
        "yy    22  short",
    ]
    assert [line for line, _ in lines(fitting(columns, rows, 18), [("", rows)], 18)][2] == "x      1  a lon..."
    narrow = fitting(columns, rows, 14)
    assert [column.header for column in narrow] == ["name", "text"]
    assert [line for line, _ in lines(narrow, [("two words", rows)], 14)] == [
        "name  text",
        "",
        "two words",
        "x     a lon...",
        "yy    short",
    ]
    assert [column.header for column in fitting(columns, rows, 3)] == ["name"]


def test_bars_and_number_lines() -> None:
    assert bars([1.0, 0.5, 0.0, 0.01], 2, ascii_only=True) == ["#   ", "## #"]
    assert bars([1.0, 0.75, 0.5, 0.01], 2, ascii_only=False) == ["█▄  ", "███▁"]
    assert number_line([0, 1, 1.1, 4], 0, 4, 4, ascii_only=True) == ".|  "[:2] + " ."
