"""The figures of values against the formats' grids: their data equals the events, their colours say what becomes of a value."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import torch
from pages import Page, rows
from run_folders import config, histograms, recipe, training, write_run

from altgrad_core.analysis.grid_figure import Panel, fate, grid_figure
from altgrad_core.analysis.report import write_report
from altgrad_core.analysis.report.grids import merged, share
from altgrad_core.analysis.runs import load_run
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import quantize
from altgrad_core.training.histograms import CastHistogram, FormatRange


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline without casts, and two runs with histograms at some steps."""
    folder = tmp_path_factory.mktemp("runs") / "grids"
    for name in ("bf16", "e5m2", "e4m3fn"):
        made = config(name, baseline=name == "bf16", recipe=recipe(name), train={"steps": 40})
        told = [histograms(step, name) for step in (1, 20, 40) if name != "bf16"]
        write_run(folder / name, made, [*training(name, steps=40, planned=40)[:-1], *told])
    return folder


def test_a_run_gives_its_histograms_back(folder: Path) -> None:
    run = load_run(folder / "e5m2")
    assert list(run.histograms) == [1, 20, 40]
    its = run.histograms[20]["blocks.1.attn.qkv.weight"]
    assert (its.format, its.overflow, its.codes, its.edges[0], len(its.counts)) == ("e5m2", 20, 116, -4, 15)
    assert its.range.max_finite == 57344.0
    assert load_run(folder / "bf16").histograms == {}


def test_a_step_that_comes_again_wins(tmp_path: Path) -> None:
    again = histograms(20, "e5m2")
    again["casts"] = {"a.input": {**again["casts"]["blocks.0.attn.qkv.input"], "overflow": 7}}
    write_run(tmp_path / "a", config("a"), [histograms(40, "e5m2"), histograms(20, "e5m2"), again])
    run = load_run(tmp_path / "a")
    assert list(run.histograms) == [20, 40]
    assert {name: its.overflow for name, its in run.histograms[20].items()} == {"a.input": 7}


def test_the_data_is_that_of_the_events(folder: Path) -> None:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [key for key in page.figures if key.startswith("grid")] == [
        "grid-0",
        "grid-1",
        "grid-casts-0",
        "grid-casts-1",
    ]
    run = load_run(folder / "e5m2")  # the runs stand by name: e4m3fn, e5m2
    header, *body = rows(page.files["grid-1.csv"])
    assert len(body) == len(run.histograms[40]) == 48
    for line in body:
        row = dict(zip(header, line))
        its = run.histograms[40][row["cast"]]
        assert (row["step"], row["format"]) == ("40", "e5m2")
        for name in ("elements", "zeros", "underflow", "subnormal", "overflow", "nan", "inf", "codes"):
            assert int(row[name]) == getattr(its, name)
        counts = {int(name[2:]): int(count) for name, count in row.items() if name.startswith("2^") and count != "0"}
        assert counts == dict(zip(its.edges, its.counts))
    header, *body = rows(page.files["grid-casts-1.csv"])
    worst = [f"{layer}.{operand}" for layer in ("blocks.3.mlp.down", "blocks.3.mlp.up")
             for operand in ("input", "weight", "grad_output")]  # fmt: skip
    assert [line[:2] for line in body] == [[step, cast] for step in ("1", "20", "40") for cast in worst]
    assert "e5m2: the 6 of 48 casts that lose most" in page.text
    assert "blocks.3.mlp.down.input uses the fewest codes: 105 of the 248 numbers of e5m2." in page.text
    assert "grad output in e5m2, 16 layers" in page.text
    total = 16 * (10 * (2**15 - 1) + 5)
    assert f"{share(40 * sum(range(16)), total)} to zero, {share(16 * 40, total)} clamped" in page.text


def test_runs_without_casts_have_no_section(tmp_path: Path) -> None:
    write_run(tmp_path / "bf16", config("bf16", baseline=True), training("bf16", steps=5, planned=5))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "grids" not in page.text


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e2m1fn", "e3m4", "nf4", "e8m0fnu", "bf16", "posit8", "e0m7f"])
def test_the_fate_of_a_binade_is_that_of_its_values(name: str) -> None:
    """Every binade's colour against the cast of values in it, but for those in which the format begins and ends."""
    format_ = get_format(name)
    its = FormatRange.of(format_)
    for exponent in range(-60, 60):
        x = 2.0**exponent * torch.tensor([1.125, 1.5, 1.875])
        q = quantize(x.double(), name, saturation="finite")
        kind = fate(exponent, its)
        if any(2.0**exponent < end < 2.0 ** (exponent + 1) for end in (its.min_positive / 2, its.max_finite)):
            assert kind != "lost"
            continue
        if kind == "lost":
            ends = torch.tensor([0.0, its.min_positive, its.max_finite], dtype=torch.float64)
            assert bool(torch.isin(q, ends).all()), exponent  # posits do not round to zero
        else:
            assert bool((q != 0).all()), exponent
            assert bool((q <= its.max_finite).all())
        if kind == "subnormal":
            assert 2.0**exponent < (its.min_normal or 0)


def test_casts_are_added_up_binade_by_binade() -> None:
    its = FormatRange.of(get_format("e5m2"))
    one = CastHistogram(
        format="e5m2", range=its, elements=10, zeros=1, underflow=2, subnormal=0, overflow=0, nan=0, inf=0, codes=5,
        first=-3, counts=(4, 0, 5),
    )  # fmt: skip
    other = attrs.evolve(one, first=-1, counts=(7, 2), zeros=1, codes=9)
    zeros = attrs.evolve(one, first=0, counts=(), zeros=10)
    both = merged([zeros, one, other])
    assert (both.first, both.counts, both.elements, both.zeros, both.codes) == (-3, (4, 0, 12, 2), 30, 12, None)
    assert merged([zeros, zeros]).counts == ()


def test_zeros_alone_and_values_far_out_are_drawn() -> None:
    its = FormatRange.of(get_format("e2m1fn"))
    common = {"format": "e2m1fn", "range": its, "nan": 0, "inf": 0, "codes": None, "subnormal": 0}
    zeros = CastHistogram(**common, elements=4, zeros=4, underflow=0, overflow=0, first=0, counts=())
    far = CastHistogram(**common, elements=2, zeros=0, underflow=1, overflow=1, first=-100, counts=[1, *[0] * 180, 1])
    svg = grid_figure([Panel("a", "", zeros), Panel("b", "", far)], salt="far")
    assert "NaN" not in svg
    assert "url(#far-" in svg  # the hatching of what is lost
    numbers = [float(text.replace("−", "-")) for text in re.findall(r">([−\d.]+)</text>", svg)]
    assert min(numbers) >= -15  # the axis ends near the format's range: what lies beyond is in its last bars
    assert max(numbers) <= 60


def test_a_small_share_is_not_none() -> None:
    assert [share(n, 10**6) for n in (0, 1, 20, 1234, 99_999, 123_456, 10**6)] == [
        "0 %", "<0.001 %", "0.002 %", "0.12 %", "10 %", "12 %", "100 %",
    ]  # fmt: skip
    assert share(0, 0) == "0 %"


def test_where_nothing_is_lost_no_cast_loses_most(tmp_path: Path) -> None:
    told = histograms(1, "e5m2")
    its = next(iter(told["casts"].values()))
    for name, overflow in (("a", 0), ("b", 1)):
        casts = {
            "x.input": {**its, "underflow": 0, "overflow": 0},
            "x.weight": {**its, "underflow": 0, "overflow": overflow},
        }
        event = {**told, "casts": casts}
        write_run(tmp_path / name, config(name), [*training("e5m2", steps=5, planned=5)[:-1], event])
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "a: 2 casts, none of which loses a value" in text
    assert "b: the 2 casts that lose most" in text


def test_operands_of_other_kinds_of_layers_are_drawn(tmp_path: Path) -> None:
    """Attention and norms have operands of their own; a run may have no others."""
    told = histograms(1, "e5m2")
    its = told["casts"]["blocks.0.attn.qkv.input"]
    for name, casts in (("attention", ["a.input", "a.query", "b.query", "n.output"]), ("norms", ["n.output"])):
        event = {**told, "casts": dict.fromkeys(casts, its)}
        write_run(tmp_path / name, config(name), [*training("e5m2", steps=5, planned=5)[:-1], event])
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    panels = re.findall(r"(\w+) in e5m2, (\d) layer", page.text)
    assert panels == [("input", "1"), ("query", "2"), ("output", "1"), ("output", "1")]
