"""A file system that fills up while a checkpoint is written: a real one, of a few megabytes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import MakeExperiment, altgrad_cli

import altgrad_core as altgrad


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a disk outside of ``tmp_path``, which pytest could not tidy up where a killed test has left it mounted."""
    for left in Path(tempfile.gettempdir()).glob("altgrad-disk-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            subprocess.run(["umount", "--lazy", str(left)], check=False)
            left.rmdir()
    folder = Path(tempfile.gettempdir(), f"altgrad-disk-{os.getpid()}")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_the_disk_fills_during_a_checkpoint(make_experiment: MakeExperiment, tmp_path: Path, small_disk: Path) -> None:
    """Each checkpoint takes about 440 KB: the third does not fit beside the two that are kept."""
    file = make_experiment(
        '[[run]]\nname = "r"\nrecipe = "e5m2"\ncheckpoint = { every = 1, keep = 2 }\ntrain = { eval_every = 0 }\n',
        launcher="process",
    )
    done = altgrad_cli("run", file, "--runs", small_disk)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Could not write the checkpoint" in done.stdout
    assert "No space left on device" in done.stdout
    assert "--retry-failed" in done.stdout
    assert "Traceback" not in done.stdout
    folder = small_disk / "small" / "r"
    run = altgrad.load_run(folder)
    assert run.status == "failed"
    steps = run.metrics("train/loss")[0]
    kept = [checkpoint["path"] for checkpoint in run.checkpoints]
    assert kept
    assert all((folder / path / "manifest.json").exists() for path in kept[-2:])
    assert not list((folder / "checkpoints").glob(".saving-*"))

    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = altgrad_cli("run", file, "--runs", small_disk, "--retry-failed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed at step {len(kept)}" in again.stdout
    assert steps[-1] in (len(kept) + 1, len(kept) + 2), "training ends at the first step after the save has failed"
    straight = altgrad_cli("run", file, "--runs", tmp_path / "elsewhere")
    assert straight.returncode == 0
    reference = altgrad.load_run(tmp_path / "elsewhere" / "small" / "r")
    assert altgrad.load_run(folder).metrics("train/loss") == reference.metrics("train/loss")
