"""Exported tables equal what ``load_run`` reads, value for value."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path

import pytest
from run_folders import START, config, histograms, metrics, status, training, write_run

from altgrad_core.analysis.export import export, export_to
from altgrad_core.analysis.runs import Run, load_run
from altgrad_core.errors import AltgradError

ODD = {
    "train/loss": "NaN",
    "x": "Infinity",
    "y": "-Infinity",
    "tiny": 5e-324,
    "third": 1 / 3,
    "whole": 3,
    'a,"b"': 1e300,
}


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """A training that was resumed from step 20, and one with odd values."""
    resumed = training("e5m2", steps=30, planned=30)[:-1]
    resumed += [status("running", resumed=True, step=20), metrics(25, {"train/loss": 9.5}), status("done", step=30)]
    odd = [status("running"), metrics(1, ODD), status("done")]
    return [
        load_run(write_run(tmp_path / "e5m2", config("e5m2"), resumed)),
        load_run(write_run(tmp_path / "odd", config("größe, 8"), odd)),
    ]


def read(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode())))


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def check(runs: list[Run], rows: list[tuple[str, int, str, float]]) -> None:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for name, step, metric, value in rows:
        steps = found.setdefault((name, metric), {})
        assert step not in steps, "a step is there once"
        steps[step] = value
    assert set(found) == {(run.name, metric) for run in runs for metric in run.metric_names()}
    for run in runs:
        for metric in run.metric_names():
            steps, values = run.metrics(metric)
            assert list(found[run.name, metric]) == steps
            assert all(map(same, found[run.name, metric].values(), values)), metric
    assert found["e5m2", "train/loss"][25] == 9.5


def test_csv_round_trip(runs: list[Run]) -> None:
    header, *rows = read(export(runs, "csv"))
    assert header == ["run", "step", "metric", "value"]
    check(runs, [(name, int(step), metric, float(value)) for name, step, metric, value in rows])


def test_parquet_round_trip(runs: list[Run], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'altgrad[parquet]'")
    export_to(tmp_path / "x.parquet", runs, "parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("run", "string"), ("step", "int64"), ("metric", "string"), ("value", "double"),
    ]  # fmt: skip
    check(runs, list(zip(*(column.to_pylist() for column in table.columns), strict=True)))


def test_alerts_and_checkpoints(tmp_path: Path) -> None:
    alert = {"alert": "nan", "action": "checkpoint", "value": "NaN", "threshold": "Infinity", "message": 'it is, "NaN"'}
    saved = {"kind": "final", "path": "checkpoints/step-000002", "bytes": 10, "seconds": 0.5, "blocked_s": 0.1}
    events = [
        status("running"),
        metrics(1, {"train/loss": 1.0}),
        {"time": START, "event": "alert", "step": 1, "layer": None, **alert},
        {"time": START, "event": "checkpoint", "step": 2, "state_hash": "ab", **saved},
    ]
    run = load_run(write_run(tmp_path / "r", config("r"), events))
    assert read(export([run], "csv", "alerts")) == [
        ["run", "step", "alert", "action", "layer", "value", "threshold", "message"],
        ["r", "1", "nan", "checkpoint", "", "nan", "inf", 'it is, "NaN"'],
    ]
    assert read(export([run], "csv", "checkpoints")) == [
        ["run", "step", "kind", "path", "bytes", "seconds", "blocked_s", "state_hash"],
        ["r", "2", "final", "checkpoints/step-000002", "10", "0.5", "0.1", "ab"],
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(export([run], "parquet", "alerts"))).to_pylist()
    assert (table[0]["layer"], math.isnan(table[0]["value"]), table[0]["threshold"]) == (None, True, math.inf)


def test_histograms_have_a_row_a_binade(tmp_path: Path) -> None:
    told = histograms(20, "e5m2")
    name, its = next(iter(told["casts"].items()))
    zeros = {**its, "counts": [], "zeros": its["elements"], "codes": None}
    told["casts"] = {name: its, "a.input": zeros}
    run = load_run(write_run(tmp_path / "r", config("r"), [status("running"), told]))
    head, *body = read(export([run], "csv", "histograms"))
    facts = ("elements", "zeros", "underflow", "subnormal", "overflow", "nan", "inf", "codes")
    assert head == ["run", "step", "cast", "format", *facts, "exponent", "count"]
    same = ["r", "20", name, "e5m2", *(str(its[fact]) for fact in facts)]
    assert body[:-1] == [[*same, str(its["first"] + i), str(count)] for i, count in enumerate(its["counts"])]
    assert body[-1] == ["r", "20", "a.input", "e5m2", *(str(zeros[fact]) for fact in facts[:-1]), "", "", ""]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(export([run], "parquet", "histograms"))).to_pylist()
    assert [row["count"] for row in table] == [*its["counts"], None]


def test_half_a_surrogate_pair_is_the_same_text_in_both(tmp_path: Path) -> None:
    alert = {"time": START, "event": "alert", "step": 1, "alert": "nan", "message": "bad \ud800"}
    run = load_run(write_run(tmp_path / "r", config("r"), [status("running"), alert]))
    assert read(export([run], "csv", "alerts"))[1][-1] == "bad \\ud800"
    parquet = pytest.importorskip("pyarrow.parquet")
    (row,) = parquet.read_table(io.BytesIO(export([run], "parquet", "alerts"))).to_pylist()
    assert row["message"] == "bad \\ud800"


def test_a_run_without_events_has_a_header(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", config("r"), None))
    assert export([run], "csv") == b"run,step,metric,value\n"
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(io.BytesIO(export([run], "parquet"))).num_rows == 0


def test_wrong_words(runs: list[Run]) -> None:
    with pytest.raises(AltgradError, match=r"Unknown file format 'cvs'\. Did you mean 'csv'"):
        export(runs, "cvs")
    with pytest.raises(AltgradError, match=r"Unknown table 'metric'\. Did you mean 'metrics'"):
        export(runs, "csv", "metric")


def test_parquet_without_pyarrow_names_the_pip_line(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AltgradError, match=r"pip install 'altgrad\[parquet\]'"):
        export(runs, "parquet")
