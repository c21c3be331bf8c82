"""Checkpoints on file systems that refuse, and under kill -9: real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from altgrad_checkpoint.local import LocalBackend

from altgrad_core.errors import RunFailed
from altgrad_core.training.checkpoint import Checkpoints


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # loaded tensors may still map its files


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def save(checkpoints: Checkpoints, step: int, elements: int = 1000) -> None:
    checkpoints.save(step, {"model": {"w": torch.full((elements,), float(step))}}, kind="step", notes={})
    checkpoints.settle(wait=True)


def test_a_read_only_folder(disk: Path) -> None:
    warnings: list[str] = []
    checkpoints = Checkpoints(LocalBackend(disk / "checkpoints"), 1, warnings.append)
    save(checkpoints, 1)
    (disk / "checkpoints" / ".saving-step-000002").mkdir()
    remount(disk, "ro")
    with pytest.raises(RunFailed, match=r"step-000002: .*Read-only file system.*Earlier checkpoints are untouched"):
        save(checkpoints, 2)
    assert checkpoints.load_newest().saved.name == "step-000001"
    checkpoints.clean()
    assert "Read-only file system" in warnings[0]
    assert "does no harm" in warnings[0]
    remount(disk, "rw")
    save(checkpoints, 2)
    assert checkpoints.load_newest().saved.name == "step-000002"
    assert sorted(path.name for path in (disk / "checkpoints").iterdir()) == ["latest", "step-000002"]


def test_a_disk_that_fills(disk: Path) -> None:
    """Whatever file of the checkpoint it is that does not fit."""
    checkpoints = Checkpoints(LocalBackend(disk / "checkpoints"), 1, print)
    save(checkpoints, 1)
    ballast, outcomes = disk / "ballast", list[str]()
    for free_kib in range(0, 44, 4):
        with ballast.open("wb") as file:
            left = os.statvfs(disk)
            file.write(bytes(max(0, left.f_bavail * left.f_frsize - free_kib * 1024)))
        before, step = checkpoints.load_newest().saved, 2 + free_kib
        checkpoints.save(step, {"model": {"w": torch.full((1000,), float(step))}}, kind="step", notes={})
        try:
            checkpoints.settle(wait=True)
            outcomes.append("saved")
        except RunFailed as error:
            outcomes.append(str(error))
            # The checkpoint itself did not fit, or only its pointer did not.
            assert checkpoints.load_newest().saved.name in (before.name, checkpoints.name(step))
            assert checkpoints.backend.pointed("latest") == before.name in checkpoints.backend.names()
            assert not list((disk / "checkpoints").glob(".saving-step-*"))
        else:
            assert checkpoints.backend.pointed("latest") == checkpoints.name(step)
        ballast.unlink()
    failures = outcomes.index("saved")
    assert failures >= 4
    assert all("No space left on device" in outcome for outcome in outcomes[:failures])
    assert set(outcomes[failures:]) == {"saved"}
    save(checkpoints, 99)
    assert checkpoints.load_newest().saved.name == "step-000099"


SAVES_FOR_EVER = """
import sys, torch
from pathlib import Path
from altgrad_checkpoint.local import LocalBackend
from altgrad_core.training.checkpoint import Checkpoints

checkpoints = Checkpoints(LocalBackend(Path(sys.argv[1])), 2, print)
weight = torch.zeros(500_000)
for step in range(1, 10**6):
    weight.fill_(step)
    checkpoints.settle(wait=True)
    checkpoints.save(step, {"model": {"w": weight}, "step": step}, kind="best", notes={}, best=f"step-{step:06d}")
"""


def test_kill_minus_nine_leaves_the_earlier_ones_whole(tmp_path: Path) -> None:
    """Killed while it saves, deletes and moves pointers; every checkpoint that has its name is whole, always."""
    moments = {"save": ".saving-step-*", "pointer": ".saving-best", "rotation": ".deleted-*", "again": ".saving-step-*"}
    processes = {
        moment: subprocess.Popen([sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path / moment)]) for moment in moments
    }
    cut = 0
    try:
        for moment, pattern in moments.items():
            folder, deadline = tmp_path / moment, time.monotonic() + 60
            while len(list(folder.glob("step-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            deadline = time.monotonic() + 10
            while not list(folder.glob(pattern)) and time.monotonic() < deadline:
                pass
            processes[moment].send_signal(signal.SIGKILL)
            assert processes[moment].wait() == -signal.SIGKILL
            cut += bool(list(folder.glob(".*")))
            backend = LocalBackend(folder)
            assert len(backend.names()) >= 2
            assert all(backend.verify(name) for name in backend.names())
            assert backend.pointed("latest") in backend.names()
            assert backend.pointed("best") in backend.names()
            checkpoints = Checkpoints(backend, 2, pytest.fail)
            checkpoints.clean()
            loaded = checkpoints.load_newest()
            assert torch.equal(loaded.state["model"]["w"], torch.full((500_000,), float(loaded.state["step"])))
            assert not list(folder.glob(".*"))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert cut, "no kill came while anything was half done"
