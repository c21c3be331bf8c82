"""``altgrad formats``: what it prints, at several widths, without colour."""

from __future__ import annotations

import pytest

from altgrad_core.cli.formats import formats, number
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import format_names


@pytest.mark.parametrize("width", [50, 80, 140, 160])
def test_the_table_names_every_format_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    formats()
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert max(len(line) for line in printed.splitlines()) <= width
    words = printed.split()
    assert [name for name in format_names() if name not in words] == []
    assert "57344" in words
    assert ("8/7" in words) == (width > 50)
    assert ("OFP8" in printed) == (width > 140)
    assert "…" not in printed


def test_one_format_in_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    formats("e2m1fn")
    assert (
        capsys.readouterr().out
        == """\
e2m1fn
  bits           4: sign, 2 exponent, 1 mantissa
  bias           1
  max finite     6  (code 0x7)
  rounds to max  everything beyond, for want of Inf and NaN
  min normal     1
  min subnormal  0.5
  Inf            none
  NaN            none
  -0             yes
  in bfloat16    every value is exact
  torch dtype    none
  source         OCP MX 1.0, 5.3.3: FP4 E2M1

Values of the 8 codes with the sign bit clear, in hexadecimal order:
  0x0    0  0.5    1  1.5    2    3    4    6
"""
    )


def test_all_values_of_an_eight_bit_format(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    formats("e5m2")
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("  0x")]
    assert sum(len(row) - 1 for row in rows) == 128
    assert rows[-1][-4:] == ["Inf", "NaN", "NaN", "NaN"]
    assert "up to 61440, exclusive" in printed
    assert "code 0x7C and its negative" in printed


def test_a_wide_or_unregistered_format_shows_its_constants(capsys: pytest.CaptureFixture[str]) -> None:
    formats("e8m3")
    printed = capsys.readouterr().out
    assert "12: sign, 8 exponent, 3 mantissa" in printed
    assert "4096 codes; values are listed for formats of up to 8 bits" in printed


def test_an_unknown_format_is_a_user_error() -> None:
    with pytest.raises(AltgradError, match="Unknown format 'e4m3x'"):
        formats("e4m3x")


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
