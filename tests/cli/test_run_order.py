"""The order in which ``altgrad run`` shows runs."""

from __future__ import annotations

import json
from pathlib import Path

from altgrad_core.analysis.runs import load_experiment_runs
from altgrad_core.cli.run import in_file_order
from altgrad_core.experiments.config import dump_run, load_experiment


def test_the_baseline_then_the_file(tmp_path: Path) -> None:
    names = ("z", "b10", "base", "a", "b9")
    runs = "".join(f'[[run]]\nname = "{name}"\n' + "baseline = true\n" * (name == "base") for name in (*names, "old"))
    (tmp_path / "e.toml").write_text(f'[experiment]\nname = "e"\n{runs}')
    experiment = load_experiment(tmp_path / "e.toml")
    for config in experiment.runs:
        (tmp_path / config.name).mkdir()
        (tmp_path / config.name / "run.toml").write_text(dump_run(config))
        event = {"time": 1.0, "event": "status", "status": "running"}
        (tmp_path / config.name / "events.jsonl").write_text(json.dumps(event) + "\n")
    (tmp_path / "e.toml").write_text((tmp_path / "e.toml").read_text().replace('[[run]]\nname = "old"\n', ""))
    found = in_file_order(load_experiment_runs(tmp_path), load_experiment(tmp_path / "e.toml"))
    assert [run.name for run in found] == ["base", "z", "b10", "a", "b9", "old"]
