"""``altgrad compare``, ``altgrad export`` and ``altgrad report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from altgrad_core.cli.compare import compare
from altgrad_core.cli.export import export
from altgrad_core.cli.report import report
from altgrad_core.errors import AltgradError

app = typer.Typer()
app.command()(compare)
app.command()(report)
app.command()(export)


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
    header = ["run", "status", "steps", "val", "loss", "best", "diff", "to", "target", "time", "NaN", "alerts"]
    assert lines[0].split() == header
    assert lines[1].split() == ["bf16", "*", "done", "1", "2.0000", "2.0000", "-", "1", "8.0", "s", "0", "0"]
    assert lines[2].split() == ["[e5m2]", "done", "1", "2.1000", "2.1000", "+5.00", "%", "-", "8.0", "s", "0", "0"]
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


@pytest.mark.parametrize(("limit", "code"), [("5%", 0), ("5 %", 0), ("4.9 %", 1), ("0%", 1)])
def test_assert_within(experiment: Path, limit: str, code: int) -> None:
    result = CliRunner().invoke(app, ["compare", str(experiment), "--assert-within", limit])
    assert result.exit_code == code
    said = "[e5m2] is not within {} %: validation loss 2.1000 against 2.0000 of bf16 at step 1, +5.00 %.\n"
    assert result.stderr == (said.format(limit.rstrip("% ")) if code else "")
    assert ("All are within 5 % of the baseline." in result.stdout) == (code == 0)


def test_assert_within_in_json(experiment: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(experiment), "--assert-within", "1%", "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)["assert_within"]
    assert answer["limit_percent"] == 1.0
    assert answer["failures"] == result.stderr.splitlines()


def test_a_limit_without_sense_is_a_wrong_input(experiment: Path) -> None:
    for arguments in (["--assert-within", "much"], ["--assert-within", "0.01"], ["--loss-target", "-1"]):
        result = CliRunner().invoke(app, ["compare", str(experiment), *arguments])
        assert isinstance(result.exception, AltgradError)
    result = CliRunner().invoke(app, ["compare", str(experiment / "bf16"), "--assert-within", "1%"])
    assert "bf16 is all there is" in str(result.exception)


def test_a_loss_target(experiment: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(experiment), "--loss-target", "2.1", "--json"])
    read = json.loads(result.stdout)
    assert (read["loss_target"], [run["steps_to_target"] for run in read["runs"]]) == (2.1, [1, 1])


def test_export(experiment: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(experiment)])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == ["run,step,metric,value", "bf16,1,train/loss,3.0", "bf16,1,val/loss,2.0"]
    written = tmp_path / "out" / "x.csv"
    done = CliRunner().invoke(app, ["export", str(experiment), "--output", str(written)])
    assert done.stdout == f"{written}\n"
    assert written.read_text() == result.stdout
    odd = CliRunner().invoke(app, ["export", str(experiment), "--output", str(tmp_path / "x.xlsx")])
    assert "'.xlsx' is no known ending; use .csv or .parquet, or say --to csv" in str(odd.exception)
    one = CliRunner().invoke(app, ["export", str(experiment / "[e5m2]"), "--what", "alerts"])
    assert one.stdout == "run,step,alert,action,layer,value,threshold,message\n"


def test_export_as_parquet(experiment: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written = tmp_path / "x.parquet"
    assert CliRunner().invoke(app, ["export", str(experiment), "-o", str(written)]).exit_code == 0
    assert parquet.read_table(written).num_rows == 4
    result = CliRunner().invoke(app, ["export", str(experiment), "--to", "parquet"])
    assert "name a file with --output" in str(result.exception)


def test_report(experiment: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(experiment)])
    assert result.exit_code == 0
    assert result.stdout == f"{experiment / 'report.html'}\n"
    assert "validation loss 2.100 against 2.000" in (experiment / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["compare", "report", "export"])
def test_a_folder_of_something_else(tmp_path: Path, verb: str) -> None:
    result = CliRunner().invoke(app, [verb, str(tmp_path)])
    assert isinstance(result.exception, AltgradError)
    assert str(tmp_path) in str(result.exception)
    assert "run.toml" in str(result.exception)
