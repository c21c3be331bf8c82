"""``altgrad compare`` and ``altgrad report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from altgrad_core.cli.compare import compare
from altgrad_core.cli.report import report
from altgrad_core.errors import AltgradError

app = typer.Typer()
app.command()(compare)
app.command()(report)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two finished runs."""
    folder = tmp_path / "runs" / "e"
    for name, loss in (("bf16", 2.0), ("[e5m2]", 2.1)):
        (folder / name).mkdir(parents=True)
        made = {"experiment": "e", "name": name, "baseline": name == "bf16", "train": {"steps": 1}}
        (folder / name / "run.toml").write_text(tomli_w.dumps(made))
        events = [
            {"time": 1.0, "event": "status", "status": "running"},
            {"time": 2.0, "event": "metrics", "step": 1, "values": {"train/loss": 3.0, "val/loss": loss}},
            {"time": 9.0, "event": "status", "status": "done", "step": 1},
        ]
        (folder / name / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.mark.parametrize("given", [["bf16", "[e5m2]"], [""]])
def test_table_and_verdicts(experiment: Path, given: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", *(str(experiment / name) for name in given)], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["run", "status", "steps", "val", "loss", "best", "diff", "time", "NaN", "alerts"]
    assert lines[1].split() == ["bf16", "*", "done", "1", "2.0000", "2.0000", "-", "8.0", "s", "0", "0"]
    assert lines[2].split() == ["[e5m2]", "done", "1", "2.1000", "2.1000", "+5.00", "%", "8.0", "s", "0", "0"]
    assert "[e5m2] ends 5.00 % above bf16 (validation loss 2.100 against 2.000)." in result.stdout


def test_a_file_gets_the_whole_table(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody folds lines there, and somebody may look for the column that 80 of them have no room for."""
    monkeypatch.delenv("COLUMNS", raising=False)
    events = experiment / "bf16" / "events.jsonl"
    rates = {"grad_cos_sim": 0.5, "overflow_rate": 0.1, "underflow_rate": 0.1, "bit_stall_rate": 0.5}
    metrics = {"time": 2.0, "event": "metrics", "step": 1, "values": {**rates, "train/tokens_per_s": 1000.0}}
    events.write_text(events.read_text() + json.dumps(metrics) + "\n")
    result = CliRunner().invoke(app, ["compare", str(experiment)])
    assert {"best", "cosine", "overflow", "underflow", "tokens/s", "time", "alerts"} <= {*result.stdout.split()}
    assert "Left out" not in result.stdout


def test_json_and_another_baseline(experiment: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(experiment), "--json", "--baseline", "[e5m2]"])
    assert result.exit_code == 0
    read = json.loads(result.stdout)
    assert read["baseline"] == "[e5m2]"
    assert [run["name"] for run in read["runs"]] == ["bf16", "[e5m2]"]
    assert read["runs"][0]["difference_percent"] == pytest.approx(100 * (2.0 / 2.1 - 1))
    assert read["runs"][0]["grad_cos_sim"] is None


def test_report(experiment: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(experiment)])
    assert result.exit_code == 0
    assert result.stdout == f"{experiment / 'report.html'}\n"
    assert "validation loss 2.100 against 2.000" in (experiment / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_folder_of_something_else(tmp_path: Path, verb: str) -> None:
    result = CliRunner().invoke(app, [verb, str(tmp_path)])
    assert isinstance(result.exception, AltgradError)
    assert str(tmp_path) in str(result.exception)
    assert "run.toml" in str(result.exception)
