"""What trackers show of a run's end: it is what ``altgrad compare`` says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import config, metrics, recipe, status, write_run

from altgrad_core.analysis.compare import compare
from altgrad_core.analysis.runs import load_experiment_runs
from altgrad_core.analysis.tracking import flat, outcome
from altgrad_core.errors import AltgradError

DONE = status("done", step=2)


def ended(folder: Path, name: str, loss: float, **changes: Any) -> Path:
    """A run's folder, written as far as a worker has when it asks for the outcome: all but the last event."""
    made = config(name, train={"steps": 2}, **changes)
    events = [status("running"), metrics(2, {"train/loss": loss, "val/loss": loss})]
    return write_run(folder / name, made, [*events, *([] if name == "e5m2-43" else [DONE])])


def test_the_outcome_is_the_row_of_the_comparison(tmp_path: Path) -> None:
    ended(tmp_path, "bf16-42", 2.0, baseline=True)
    ended(tmp_path, "bf16-43", 2.2, seed=43)
    folder = ended(tmp_path, "e5m2-43", 2.31, seed=43, recipe=recipe("e5m2"))
    told = outcome(folder, DONE)
    assert (told["status"], told["baseline"]) == ("done", "bf16-43")
    assert told["difference_percent"] == pytest.approx(5.0)
    assert told["verdict"] == "e5m2-43 ends 5.00 % above bf16-43 (validation loss 2.310 against 2.200)."
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1790000009.0, "event": "status", "status": "done", "step": 2}\n')
    row = next(row for row in compare(load_experiment_runs(tmp_path)).rows if row.name == "e5m2-43")
    assert {key: told[key] for key in ("difference_percent", "final_loss", "verdict")} == {
        "difference_percent": row.difference_percent,
        "final_loss": row.final_loss,
        "verdict": row.verdict,
    }
    assert "baseline" not in outcome(tmp_path / "bf16-42", DONE)


def test_a_damaged_neighbour_is_left_out_with_a_word(tmp_path: Path) -> None:
    ended(tmp_path, "bf16-42", 2.0, baseline=True)
    folder = ended(tmp_path, "e5m2-43", 2.2, recipe=recipe("e5m2"))
    neighbour = ended(tmp_path, "other", 2.1)
    (neighbour / "events.jsonl").write_text("no event\n" * 3)
    told = outcome(folder, DONE)
    assert told["left_out"] == "cannot be read, and so are not compared with: other"
    assert told["difference_percent"] == pytest.approx(10.0)
    (neighbour / "run.toml").write_text("not TOML")
    assert outcome(folder, DONE)["left_out"] == told["left_out"]
    (folder / "events.jsonl").write_text("no event\n" * 3)
    with pytest.raises(AltgradError, match="expected one JSON object with an event"):
        outcome(folder, DONE)


def test_tables_as_one() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": True}) == {"a.b.c": 1, "a.d": "[1, 2]", "e": True}
