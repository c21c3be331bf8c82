"""The report in a real browser: it opens from disk, draws its figures, and the console stays silent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import MakeExperiment

import altgrad_core as altgrad

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs Debian's")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_of_a_real_run(make_experiment: MakeExperiment, tmp_path: Path, width: int) -> None:
    file = make_experiment(
        '[[run]]\nname = "bf16"\nbaseline = true\nrecipe = "bf16"\n[[run]]\nname = "e5m2"\nrecipe = "e5m2"\n'
    )
    altgrad.run(file)
    report = tmp_path / "runs" / "small" / "report.html"
    switches = [*SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]

    def browse(*more: str) -> subprocess.CompletedProcess[str]:
        command = [CHROMIUM, *switches, *more, report.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    done = browse("--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert "e5m2 ends" in done.stdout
    assert done.stdout.count("<svg") >= 6
    image = tmp_path / "report.png"
    browse("--hide-scrollbars", f"--screenshot={image}")
    assert image.stat().st_size > 30_000  # an empty page of this size has 5 to 10 KB
