"""verify-native and bench on the CPU: what they find, what they say, and what they say of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from altgrad_core.bench import step as step_bench
from altgrad_core.bench.timing import interleaved, median, ratio
from altgrad_core.bench.variants import Variant, variants
from altgrad_core.bench.verify_native import Shape, verify
from altgrad_core.cli.main import app
from altgrad_core.errors import AltgradError
from altgrad_core.recipes import quantizer
from altgrad_core.recipes.backend import TABLE, table, worth_it

CPU = torch.device("cpu")
SHAPE = [Shape(m=33, k=48, n=72)]


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("hybrid", "tensorwise"),
        ({"base": "hybrid", "compute": "fp32"}, "tensorwise"),
        ({"base": "hybrid", "scaling": {"kind": "current", "power_of_two": False}}, "tensorwise"),
        ({"base": "e4m3fn", "scaling": "rowwise"}, "rowwise"),
        ({"input": "e5m2", "weight": "e4m3fn", "grad_output": "e5m2"}, "tensorwise"),
    ],
)  # fmt: skip
def test_the_stand_in_agrees(recipe: Any, kind: str) -> None:
    report = verify(SHAPE, recipe, CPU, rounds=0)
    (row,) = report["shapes"]
    cast_twice = 2 if kind == "rowwise" else 1
    assert row["codes"] == {"checked": cast_twice * (33 * 48 + 48 * 72 + 33 * 72), "different": 0}
    assert set(row["gemms"]) == ({"fprop", "dgrad"} if "input" in recipe else {"fprop", "dgrad", "wgrad"})
    assert all(gemm["error_to_bound"] < 1 for gemm in row["gemms"].values())
    assert (row["native"], row["granularity"], row["speed"]) == (True, kind, None)
    assert row["verdict"].startswith("codes identical, sums within the bound")
    assert all(gemm["bits"] is None or gemm["bits"] >= 20 for gemm in row["gemms"].values())
    assert report["agrees"]
    assert "a GPU" in report["verdict"]


def test_where_there_is_no_fp8_gemm_the_casts_are_checked_and_it_is_said() -> None:
    report = verify(SHAPE, "deepseek-v3", CPU, rounds=0)
    assert report["verdict"].startswith("No FP8 GEMM here for deepseek-v3: cpu refuses it")
    assert report["agrees"]
    assert report["shapes"][0]["codes"]["checked"] > 0
    report = verify(SHAPE, "e3m4", CPU, rounds=0)
    assert report["shapes"][0]["verdict"].endswith("there are no FP8 codes to compare")
    with pytest.raises(AltgradError, match="'bf16' casts no operand"):
        verify(SHAPE, "bf16", CPU)


def test_wrong_products_and_wrong_codes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real, right = torch._scaled_mm, quantizer.cast_stored
    assert verify(SHAPE, "hybrid", CPU, rounds=0)["agrees"]  # and the trials are over
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_scaled_mm", lambda *args, **how: real(*args, **how) * 1.02)
        report = verify(SHAPE, "hybrid", CPU, rounds=0)
        assert not report["agrees"]
        assert "fprop, dgrad, wgrad beyond the bound" in report["shapes"][0]["verdict"]
        assert report["verdict"].startswith("WRONG: 1 of 1 shapes")
        result = CliRunner().invoke(app, ["verify-native", "--shapes", "16x16x16", "--rounds", "0"])
        assert result.exit_code == 1
    for nothing in (torch.nan, torch.inf):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_scaled_mm", lambda *args, nothing=nothing, **how: real(*args, **how) * nothing)
            report = verify(SHAPE, "hybrid", CPU, rounds=0)
            assert "fprop, dgrad, wgrad beyond the bound: 1e+30 times" in report["shapes"][0]["verdict"]
            json.dumps(report, allow_nan=False)
    with monkeypatch.context() as patch:

        def off(*args: Any, **how: Any) -> Any:
            codes, counted = right(*args, **how)
            flat = codes.view(torch.uint8).view(-1)
            flat[3] ^= 1
            return codes, counted

        patch.setattr(quantizer, "cast_stored", off)
        report = verify(SHAPE, "hybrid", CPU, rounds=0)
        assert "3 of 7,416 codes differ from emulation" in report["shapes"][0]["verdict"]


def test_verify_native_in_the_terminal_and_as_a_table_for_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(app, ["verify-native", "--shapes", "16x32x48", "--rounds", "1", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert "16x32x48" in shown.output
    assert "identical" in shown.output
    assert "times as fast as emulated" in shown.output
    written = CliRunner().invoke(
        app,
        [
            "verify-native",
            "--shapes",
            "16x32x48",
            "--rounds",
            "1",
            "--json",
            "--recipe",
            "e4m3fn",
            "--scaling",
            "rowwise",
        ],
    )
    file = tmp_path / "measured.json"
    file.write_text(written.output)
    monkeypatch.setenv(TABLE, str(file))
    table.cache_clear()
    assert worth_it(32, 48, "rowwise", "cpu")[1].endswith(f"times as fast as emulated, says {file}")
    table.cache_clear()


@pytest.mark.parametrize("text", ["16x16", "axbxc", "0x1x1", ""])
def test_a_shape_that_is_none(text: str) -> None:
    result = CliRunner().invoke(app, ["verify-native", "--shapes", f"{text},"])
    assert isinstance(result.exception, AltgradError)
    assert "A shape is MxKxN" in str(result.exception)


def test_the_shapes_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words and more words. " * 200)
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "experiments.toml"
    file.write_text(
        f'[experiment]\nname = "x"\n[defaults.model]\nn_layer = 2\nn_head = 2\nn_embd = 16\nblock_size = 8\n'
        f'[defaults.data]\nkind = "text"\npath = "{text}"\n[defaults.train]\nsteps = 2\nbatch_size = 4\n'
        '[[run]]\nname = "bf16"\nrecipe = "bf16"\n'
    )
    result = CliRunner().invoke(app, ["verify-native", str(file), "--rounds", "0", "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[result.output.index("{") :])["shapes"]
    shapes = {(row["m"], row["k"], row["n"]) for row in found}
    assert {(32, 16, 48), (32, 16, 16), (32, 16, 64), (32, 64, 16)} < shapes
    assert len(shapes) == len(found) == 5  # and the head, which is padded


def test_turns_are_taken_and_ratios_are_of_neighbours() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = interleaved(runs, CPU, rounds=3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert [len(taken) for taken in times.values()] == [3, 3]
    times = {"a": [2.0, 8.0, 3.0], "b": [1.0, 2.0, 3.0]}
    assert (median(times, "a"), ratio(times, "a", "b")) == (3.0, 2.0)


def test_bench_in_the_terminal_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def bench(*arguments: str) -> tuple[str, dict[str, Any]]:
        result = CliRunner().invoke(app, ["bench", *arguments, "--rounds", "1", "--device", "cpu", "--json", str(file)])
        assert result.exit_code == 0, result.output
        return result.output, json.loads(file.read_text())

    text, report = bench("cast", "--shape", "64x64")
    assert report["environment"]["device"] == "cpu"
    assert text.startswith("cpu: ")
    assert {"copy", "altgrad to codes", "altgrad rowwise, to codes"} <= set(report["results"][0]["rows"])
    text, report = bench(
        "layer", "--shapes", "16x32x48,16x48x32", "--only", "native rowwise", "--only", "transformer engine"
    )
    assert [list(result["rows"]) for result in report["results"]] == [["bf16", "native rowwise"]] * 2
    assert "not measured: transformer engine (not installed or not working" in text
    text, report = bench("step", "--size", "tiny", "--tokens", "128", "--micro", "64", "--only", "native tensorwise")
    (result,) = report["results"]
    assert (result["micro_batches"], result["tokens"]) == (2, 128)
    assert result["rows"]["native tensorwise"]["cast_share"] > 0
    assert "tokens/s" in text


def test_a_way_that_fails_is_noted_and_the_others_are_kept() -> None:
    def fails(model: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("out of something\nmore")

    ways = {"bf16": variants()["bf16"], "broken": Variant(name="broken", change=fails)}
    kept: list[int] = []
    result = step_bench.bench_step(
        "tiny", ways, CPU, tokens=64, micro=64, rounds=1, keep=lambda result: kept.append(len(result["rows"]))
    )
    assert result["absent"] == {"broken": "RuntimeError: out of something"}
    assert list(result["rows"]) == ["bf16"]
    assert kept == [1, 1]


def test_every_way_trains_the_layer_or_says_why_not() -> None:
    absent = {}
    for name, way in variants().items():
        try:
            changed = way.apply(torch.nn.Linear(32, 48))
        except AltgradError as error:
            absent[name] = str(error)
            continue
        assert changed(torch.randn(16, 32)).shape == (16, 48), name
    assert all("pip install" in why for why in absent.values())
    assert set(absent) <= {"transformer engine", "torchao tensorwise", "torchao rowwise"}
