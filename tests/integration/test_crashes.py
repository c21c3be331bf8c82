"""A short version of ``benchmarks/crashes.py``: ended at random moments, every bit and row of a run comes out right."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from altgrad_core.experiments.folder import RunFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("moment", ["save", "rotation", "pointer", "anomaly"])
def test_what_an_earlier_kill_left_is_no_moment_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import crashes

    run = RunFolder(tmp_path)
    left = [".saving-step-000003", ".saving-anomaly-000004", ".deleted-step-000001-0", ".saving-latest"]
    for name in left:
        (run.checkpoints / name).mkdir(parents=True)
    begun = {"event": "evaluation", "step": 0, "state": "begin"}
    run.events.write_text(f"{json.dumps(begun)}\n")
    before = crashes._Before(run)
    dice = random.Random(0)
    dice.randrange = lambda stop: 0
    comes = crashes._waits(before, moment, dice, 1.0)
    assert not comes(0.0)
    assert crashes._activity(before) == "start-up", "nothing of it is this worker's"
    assert not crashes._waits(before, "evaluation", dice, 1.0)(0.0)
    for name in left:
        (run.checkpoints / name).rmdir()
    assert not comes(0.0)
    (run.checkpoints / f"{crashes.FOLDERS[moment]}-new").mkdir()
    assert comes(0.0)
    assert crashes._activity(before) == moment
    (run.checkpoints / f"{crashes.FOLDERS[moment]}-new").rmdir()
    with run.events.open("a") as file:
        file.write(f"{json.dumps(begun)}\n")
    assert crashes._activity(before) == "first evaluation"


def test_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ALTGRAD_CACHE", "OMP_NUM_THREADS"):  # which the campaign sets
        monkeypatch.setenv(name, "1")
    import crashes

    result = crashes.campaign(tmp_path, kills=4, seed=1, jobs=1, only="stochastic")
    assert result["kills"]["total"] == 4
    assert result["completed_runs"] >= 1
