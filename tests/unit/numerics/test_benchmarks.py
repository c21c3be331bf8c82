"""The benchmarks' scripts run, and the exhaustive comparison notices a difference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad_core.numerics import native

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_exhaustive_compares_a_range(tmp_path: Path) -> None:
    output = tmp_path / "exhaustive.json"
    kernels = ["native", "torch"] if native.status().native else ["torch"]
    where = ["--from", "0x43df0000", "--to", "0x43f00000", "--jobs", "2", "--output", str(output)]
    done = run("exhaustive.py", "--formats", "e4m3fn", "e2m1fn", "--kernel", *kernels, *where)
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())["formats"]
    for name in ("e4m3fn", "e2m1fn"):
        assert written[name]["inputs"] == 0x43F00000 - 0x43DF0000
        assert set(written[name]["differences"].values()) == {0}
        assert len(written[name]["differences"]) == 2 * len(kernels)


def test_exhaustive_notices_a_difference() -> None:
    """Compared with another format's numbers beyond 240, e4m3fn differs in every one of them."""
    code = f"""
import sys; sys.path.insert(0, {str(BENCHMARKS)!r})
import exhaustive
exhaustive.DTYPES["e4m3fn"] = exhaustive.DTYPES["e4m3"]
found = exhaustive.check(("e4m3fn", 0x43E00000, 0x43E01000, ("torch",)))
assert found["differences"] == {{"torch none": 4096, "torch finite": 4096}}, found
assert found["examples"][0]["input"] == "0x43e00000"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_quantize_judges_itself(tmp_path: Path) -> None:
    output = tmp_path / "quantize.json"
    few = ["--threads", "1", "--sizes", "64K", "--dtypes", "bfloat16", "--rounds", "1", "--no-compile"]
    done = run("quantize.py", *few, "--output", str(output))
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert written["results"]["1"]["bfloat16"]["64K"]["clone"]["x_clone"] == 1.0
    assert {bar["bar"] for bar in written["bars"]} >= {"statistics, of the cast alone", "stochastic, of nearest"}
    assert "ml_dtypes" in written["peers"]
