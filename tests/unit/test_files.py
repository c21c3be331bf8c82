from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad_core.errors import RunFailed
from altgrad_core.files import write_whole


def test_texts_and_bytes_into_folders_that_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "grün\n")
    write_whole(tmp_path / "a" / "c.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "a" / "c.bin").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b.txt", "c.bin"]


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "x", "old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFailed, match=r"x: .*No space left on device.*nothing that was there is lost"):
        write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from altgrad_core.files import write_whole\n"
        "for _ in range(300): write_whole(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x"), letter]) for letter in "ab"]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert set((tmp_path / "x").read_text()) in ({"a"}, {"b"})
