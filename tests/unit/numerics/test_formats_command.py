"""``altgrad formats``: what it prints, at several widths, without colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from altgrad_core.cli.formats import formats
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import format_names

app = typer.Typer()
app.command()(formats)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs the command and returns what it prints."""

    def run(*arguments: str, width: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        done = CliRunner().invoke(app, list(arguments))
        if isinstance(done.exception, AltgradError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.mark.parametrize("width", [50, 80, 120, 160, 200])
def test_the_table_names_every_format_at_any_width(width: int, printed) -> None:
    text = printed(width=width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    words = text.split()
    assert [name for name in format_names() if name not in words] == []
    assert "57344" in words
    assert ("4/3" in words) == (width > 50)
    assert ("MI350+" in text) == (width >= 120)
    assert ("OFP8" in text) == (width >= 160)
    assert ("float8_e4m3fn" in words) == (width >= 160)


def test_families_share_their_columns(printed) -> None:
    """The table is one table: the same column begins at the same place in every family."""
    lines = printed(width=120).splitlines()
    rows = {line.split()[0]: line for line in lines if line and line.split()[0] in ("bf16", "e5m2", "mxfp4", "nf4")}
    assert len(rows) == 4
    ends = {name: line.index(f" {bits} ") + len(bits) for (name, line), bits in zip(
        rows.items(), [line.split()[1] for line in rows.values()], strict=True)}  # fmt: skip
    assert len(set(ends.values())) == 1


def test_one_format_in_full(printed) -> None:
    assert (
        printed("e2m1fn")
        == """\
e2m1fn
  bits           4: sign, 2 exponent, 1 mantissa
  bias           1
  max finite     6  (code 0x7)
  rounds to max  everything beyond, for want of Inf and NaN
  min normal     1
  min subnormal  0.5
  range          3.6 binades, 22 dB
  precision      2 significant bits, 0.6 decimal digits; relative error of a
                 normal at most 0.25
  Inf            none
  NaN            none
  -0             yes
  in bfloat16    every value is exact
  native on      NVIDIA Blackwell (B200, compute capability 10.0), AMD CDNA4
                 (MI350)
  according to   NVIDIA PTX ISA: mma, wgmma and tcgen05.mma operand types
                 (kind::f8f6f4); AMD ROCm, data types and precision support
  torch dtype    none
  source         OCP MX 1.0, 5.3.3: FP4 E2M1

Bits of precision by binade (log2 of the number of values in it, plus one):
   2 values │    ████████████
    1 value │████████████████
            └────────────────
             2^-1         2^2

The number line from 0 to 6:
  ·     ·      ·     ·      ·            ·            ·                        ·

Values by exponent, for codes with the sign bit clear:
  0x0  subnormal    0  0.5
  0x2        2^0    1  1.5
  0x4        2^1    2    3
  0x6        2^2    4    6
"""
    )


def test_all_values_of_an_eight_bit_format(printed) -> None:
    text = printed("e5m2")
    rows = [line.split() for line in text.splitlines() if line.startswith("  0x")]
    assert [row[1] for row in rows] == ["subnormal", *(f"2^{e}" for e in range(-14, 16)), "special"]
    assert {len(row) for row in rows} == {6}
    assert rows[-2][-4:] == ["32768", "40960", "49152", "57344"]
    assert rows[-1][-4:] == ["Inf", "NaN", "NaN", "NaN"]
    assert "up to 61440, exclusive" in text
    assert "code 0x7C and its negative" in text


def test_a_table_and_a_block_format(printed) -> None:
    text = printed("nf4")
    assert "a table of 16 values" in text
    assert "every value" in text
    assert text.splitlines()[-4].split()[:2] == ["0x0", "-1"]
    text = printed("nvfp4")
    assert "bits           4.5 a value: 4 + 8/16" in text
    assert "scale          e4m3fn, one for 16 elements" in text
    assert "one float32 scale for the tensor" in text
    assert "max in a block 6 times the scale; 2688 at the largest" in text
    assert "The elements are e2m1fn:" in text


def test_values_of_wider_formats_on_request(printed) -> None:
    assert "4,096 codes; --values lists them all." in printed("e8m3")
    rows = [line for line in printed("e8m3", "--values").splitlines() if line.startswith("  0x")]
    assert rows[0].split()[:4] == ["0x000", "subnormal", "0", "2^-129"]
    assert "too many to list" in printed("fp32")
    with pytest.raises(AltgradError, match=r"4,294,967,296 values; lists end at 16 bits. Leave out --values."):
        printed("fp32", "--values")


def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    from altgrad_core.analysis.formats.page import page
    from altgrad_core.numerics import get_format

    for name in ("e4m3fn", "bf16", "posit8", "mxfp4"):
        for width in (40, 80, 140):
            text = [line for line, _ in page(get_format(name), width, ascii_only=True)]
            assert all(line.isascii() for line in text)
            assert any("#" in line for line in text)


def test_several_formats_side_by_side(printed) -> None:
    assert (
        printed("e4m3fn", "e5m2", "--at", "3.7,464")
        == """\
                                     min       min
format  bits  E/M  digits    max  normal  positive  specials
e4m3fn     8  4/3     1.2    448    2^-6      2^-9  NaN
e5m2       8  5/2     0.9  57344   2^-14     2^-16  Inf NaN

                    relative
  x  format  value     error   ulp
3.7  e4m3fn   3.75   +1.35 %  0.25
     e5m2      3.5   -5.41 %   0.5
464  e4m3fn    448   -3.45 %    32
     e5m2      448   -3.45 %    64

Rounding nearest_even, saturation finite, scale 1.
"""
    )
    assert "1e-06" in printed("e4m3fn", "e5m2")


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (["--at", "9", "--scale", "4"], ["9", "e2m1fn", "8", "-11.1", "%", "4"]),
        (["--at", "2.3", "--rounding", "up"], ["2.3", "e2m1fn", "3", "+30.4", "%", "1"]),
        (["--at=-2.3", "--rounding", "toward_zero"], ["-2.3", "e2m1fn", "-2", "-13", "%", "1"]),
        (["--at", "2.25", "--rounding", "stochastic"], ["2.25", "e2m1fn", "75", "%", "2,", "25", "%", "3", "-", "1"]),
        (["--at", "2", "--rounding", "stochastic"], ["2", "e2m1fn", "2", "exact", "1"]),
        (["--at", "7", "--rounding", "stochastic"], ["7", "e2m1fn", "6", "-14.3", "%", "2", "clamped"]),
        (["--at", "6.9"], ["6.9", "e2m1fn", "6", "-13", "%", "2"]),
        (["--at", "inf"], ["inf", "e2m1fn", "6", "-", "2", "clamped"]),
        (
            ["--at", "1e-9", "--rounding", "stochastic"],
            ["1e-09", "e2m1fn", ">99.99", "%", "0,", "<0.01", "%", "0.5", "-", "0.5"],
        ),
        (["--at", "0.2"], ["0.2", "e2m1fn", "0", "-100", "%", "0.5", "vanished"]),
        (["--at", "1e6"], ["1000000", "e2m1fn", "6", "-99.9994", "%", "2", "clamped"]),
    ],
)
def test_modes_at_a_number(options: list[str], row: list[str], printed) -> None:
    assert row in [line.split() for line in printed("e2m1fn", *options).splitlines()]


def test_a_scale_at_a_number(printed) -> None:
    text = printed("e4m3fn", "mxfp4", "--at", "448,1000", "--scale", "0.5")
    rows = [line.split() for line in text.splitlines()]
    assert ["448", "e4m3fn", "224", "-50", "%", "16", "clamped"] in rows
    assert ["mxfp4", "512", "+14.3", "%", "-"] in rows
    assert "saturation finite, scale 0.5." in text
    assert "under the block's own scale, whatever --scale says." in " ".join(text.split())
    assert json.loads(printed("e4m3fn", "--at", "1", "--scale", "0.5", "--json"))["scale"] == 0.5


def test_saturation_at_a_number(printed) -> None:
    rows = [line.split()[-3:] for line in printed("e5m2", "e4m3fn", "--at", "7e4", "--saturation", "none").splitlines()]
    assert ["Inf", "-", "8192"] in rows
    assert ["NaN", "-", "32"] in rows


def test_blocks_at_a_number(printed) -> None:
    text = printed("mxfp4", "--at", "6,-5")
    assert ["6", "mxfp4", "6", "exact", "-"] in [line.split() for line in text.splitlines()]
    assert "alone in its block" in text


def test_json(printed) -> None:
    read = json.loads(printed("e4m3fn", "e5m2", "--at", "464,inf", "--json", "--saturation", "none"))
    assert [row["name"] for row in read["formats"]] == ["e4m3fn", "e5m2"]
    assert read["formats"][0]["max_finite"] == 448
    assert [point["value"] for point in read["at"]] == [448, 448, "NaN", "Inf"]
    assert read["saturation"] == "none"
    everything = json.loads(printed("--json"))
    assert sorted(row["name"] for row in everything["formats"]) == format_names()
    assert json.loads(printed("e2m1fn", "--values", "--json"))["values"][:4] == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["e4m3x"], "Unknown format 'e4m3x'"),
        (["e4m3fn", "e5m3x"], "Unknown format 'e5m3x'"),
        (["--at", "1"], "--at needs the names of formats"),
        (["--plot", "x.png"], "--plot needs the names of formats"),
        (["e4m3fn", "--at", "1,2;3"], "'2;3' is not a number"),
        (["e4m3fn", "e5m2", "--values"], "2 are named"),
        (["e4m3fn", "--at", "1", "--rounding", "odd"], "Unknown rounding 'odd'. Known: down, nearest_away"),
        (["e4m3fn", "--rounding", "up"], "--rounding changes nothing here; it goes with --at, --sqnr"),
        (["e4m3fn", "--at", "1", "--scale", "-2"], "--scale is a positive number, got -2"),
        (["e4m3fn", "--at", "1", "--scale", "1e-60"], "scale"),
        (["e4m3fn", "--sqnr", "--scale", "2"], "--scale changes nothing here; it goes with --at."),
        (["e4m3fn", "--at", "1", "--saturation", "clip"], "Unknown saturation 'clip'"),
        (["e4m3fn", "--at", "1", "--seed", "3"], "--seed changes nothing here; it goes with --sqnr."),
        (["e4m3fn", "--sqnr", "--scaling", "amax"], "Unknown scaling 'amax'. Known: best, current, none"),
        (["e4m3fn", "--sqnr", "--samples", "10"], "--samples is 1024 or more, got 10"),
        (
            ["e4m3fn", "--sqnr", "--seed", "18446744073709551616"],
            "--seed is an integer of 64 bits, got 18446744073709551616",
        ),
        (["e4m3fn", "--at", "1e400"], "--at takes numbers of float64, up to 1.8e308; 1e400 is beyond them"),
        (["e4m3fn", "--plot", "x.pdf"], "--plot writes .png, .svg, .html files, got x.pdf"),
        (["e4m3fn", "--plot", "nowhere/x.svg"], "there is no folder nowhere"),
    ],
)
def test_mistakes(arguments: list[str], message: str, printed) -> None:
    with pytest.raises(AltgradError) as caught:
        printed(*arguments)
    assert message in str(caught.value)


def test_json_says_how_many_numbers_were_drawn(printed) -> None:
    assert json.loads(printed("e4m3fn", "--sqnr", "--samples", "1500", "--json"))["samples"] == 1024


def test_noise_is_reproducible_and_says_how_it_came_about(printed) -> None:
    text = printed("e4m3fn", "e0m7f", "mxfp8_e4m3", "--sqnr", "--samples", "65536", "--seed", "5")
    assert text == printed("e4m3fn", "e0m7f", "mxfp8_e4m3", "--sqnr", "--samples", "65536", "--seed", "5")
    assert text != printed("e4m3fn", "e0m7f", "mxfp8_e4m3", "--sqnr", "--samples", "65536", "--seed", "6")
    assert "normal: standard deviation 1; 65,536 numbers" in text
    assert "smallest power of two that puts the largest magnitude" in text
    assert "Block formats have the scales of their blocks" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:1] in ("e", "m")}
    assert float(rows["e4m3fn"][0]) == pytest.approx(31.5, abs=0.1)
    assert float(rows["e0m7f"][2]) == pytest.approx(7 * 6.0206, abs=0.15)  # scale 2: 64 even steps on each side


def test_the_default_number_of_samples_is_that_of_the_module() -> None:
    from altgrad_core.analysis.formats import signals
    from altgrad_core.cli import formats as command

    assert command._SAMPLES == signals.SAMPLES


def test_without_names_noise_is_that_of_all_small_formats(printed) -> None:
    read = json.loads(printed("--sqnr", "--samples", "2048", "--json"))
    assert {"e4m3fn", "nf4", "mxfp4", "posit8"} <= set(read["sqnr_db"])
    assert not {"bf16", "fp32", "e8m0fnu"} & set(read["sqnr_db"])
    assert read["samples"] == 2048


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_figure(ending: str, tmp_path: Path, printed) -> None:
    path = tmp_path / f"a.{ending}"
    assert printed("e4m3fn", "mxfp4", "e8m0fnu", "--plot", str(path)) == f"Wrote {path}\n"
    written = path.read_bytes()
    if ending == "png":
        assert written.startswith(b"\x89PNG")
    else:
        for text in (b"Values in each binade", b"SQNR of a normal signal", b"mxfp4 (element e2m1fn)", b"Near zero"):
            assert text in written
    if ending == "svg":
        assert b"not of the tensor" not in written
        np.save(tmp_path / "x.npy", np.ones((2, 2), dtype=np.float32))
        printed("e4m3fn", "--plot", str(tmp_path / "b.svg"), "--tensor", str(tmp_path / "x.npy"))
        assert b"SQNR of a normal signal, not of the tensor, no scale" in (tmp_path / "b.svg").read_bytes()
        printed("e4m3fn", "mxfp4", "e8m0fnu", "--plot", str(path))
        assert path.read_bytes() == written
