"""``altgrad run`` of runs that are all finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altgrad_core.cli.run import train_and_report
from altgrad_core.experiments.config import dump_run, load_experiment

FILE = """
[experiment]
name = "e"
[defaults.train]
steps = 1
[[run]]
name = "bf16"
baseline = true
recipe = "bf16"
[[run]]
name = "e5m2"
recipe = "e5m2"
"""


def test_the_table_has_its_legend_the_second_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "e.toml").write_text(FILE)
    experiment = load_experiment(tmp_path / "e.toml")
    for config in experiment.runs:
        folder = tmp_path / "runs" / "e" / config.name
        folder.mkdir(parents=True)
        (folder / "run.toml").write_text(dump_run(config))
        values = {"train/loss": 3.0, "train/perplexity": 20.1, "val/loss": 2.0, "val/perplexity": 7.4}
        events = [
            {"time": 1.0, "event": "status", "status": "running"},
            {"time": 2.0, "event": "metrics", "step": 1, "values": values},
            {"time": 9.0, "event": "status", "status": "done", "step": 1},
        ]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    train_and_report(experiment, tmp_path / "runs")
    said = " ".join(capsys.readouterr().out.split())
    assert "bf16 and e5m2 are finished already run " in said
    assert "val loss: final validation loss. diff: distance of the loss from the baseline's" in said
    assert "Not measured: " in said
