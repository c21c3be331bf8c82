"""The script for a person with a GPU, at toy size on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "native_gpu.py"


@pytest.mark.slow
def test_it_keeps_what_it_has_and_goes_on_from_there(tmp_path: Path) -> None:
    target = tmp_path / "out" / "result.json"

    def run(minutes: str) -> tuple[str, dict]:
        command = [sys.executable, str(SCRIPT), "--device", "cpu", "--sizes", "tiny", "--rounds", "1"]
        command += ["--minutes", minutes, "--output", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout, json.loads(target.read_text())

    text, first = run("0")
    assert first["done"] == []
    assert "Start the script again to go on" in text
    text, second = run("0.05")
    assert "verify tiny tensorwise: Native layers agree" in text
    assert "verify tiny tensorwise" in second["done"]
    assert second["environment"]["device_name"]
    text, third = run("0.05")
    assert third["done"][: len(second["done"])] == second["done"]
    assert len(third["done"]) > len(second["done"])
    assert "min left] verify tiny tensorwise" not in text
