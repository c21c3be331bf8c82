"""The same configuration gives the same bits: twice, two runs at a time, with a live screen or none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from helpers import MakeExperiment, comparable_metrics, state_hash

RUNS = """
[[run]]
name = "a"
recipe = { base = "e5m2", gradient = { format = "e5m2", rounding = "stochastic" } }
[[run]]
name = "b"
recipe = "e4m3fn"
"""


def on_a_terminal(command: list[str]) -> str:
    """Run the command with a terminal of its own and return what it drew."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm-256color"}
    )
    os.close(slave)
    drawn = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        drawn += block
    os.close(master)
    assert process.wait() == 0, drawn.decode(errors="replace")
    return drawn.decode(errors="replace")


def test_same_bits(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(RUNS, launcher="process", dropout=0.1)
    command = [sys.executable, "-m", "altgrad_core.cli", "run", str(file)]
    plain = subprocess.run([*command, "--runs", "plain"], capture_output=True, text=True, check=True)
    assert "\x1b" not in plain.stdout
    assert "\x1b" in on_a_terminal([*command, "--runs", "screen", "--jobs", "2"])
    for name in ("a", "b"):
        one, other = tmp_path / "plain" / "small" / name, tmp_path / "screen" / "small" / name
        assert comparable_metrics(one) == comparable_metrics(other)
        for checkpoint in ("step-000008", "step-000012"):
            assert state_hash(one, checkpoint) == state_hash(other, checkpoint)
