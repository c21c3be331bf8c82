"""A short version of ``benchmarks/crashes.py``: SIGKILL at random moments, and every bit and row comes out right."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ALTGRAD_CACHE", "OMP_NUM_THREADS"):  # which the campaign sets
        monkeypatch.setenv(name, "1")
    import crashes

    result = crashes.campaign(tmp_path, kills=4, seed=1, jobs=1, only="stochastic")
    assert result["kills"]["total"] == 4
    assert result["completed_runs"] >= 1
