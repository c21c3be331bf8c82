"""The worker process by itself: what it says when it cannot even begin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from altgrad_core.experiments.folder import RunFolder, hold


def worker(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "altgrad_core.experiments.worker", str(folder), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_second_worker_is_told_who_holds_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with hold(folder.lock, "the run"):
        done = worker(tmp_path)
    assert done.returncode == 2
    assert f"The run {tmp_path} is held by pid " in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.events.exists(), "the run belongs to the other one, which alone tells what becomes of it"


def test_an_event_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    done = worker(tmp_path)
    assert done.returncode == 1
    assert "Could not open" in done.stderr
    assert "Traceback" not in done.stderr
