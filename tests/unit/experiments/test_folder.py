from __future__ import annotations

import threading
from pathlib import Path

import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.folder import RunFolder, hold


def test_a_reader_does_not_refuse_a_starting_worker(tmp_path: Path) -> None:
    folder, stop = RunFolder(tmp_path), threading.Event()
    folder.lock.touch()

    def ask() -> None:
        while not stop.is_set():
            folder.holder()

    reader = threading.Thread(target=ask)
    reader.start()
    try:
        for _ in range(300):
            with hold(folder.lock, "the run"):
                pass
    finally:
        stop.set()
        reader.join()


def test_the_second_is_told_who_holds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.holder() is None
    with hold(folder.lock, "the run"):
        assert folder.holder().startswith("pid ")
        with pytest.raises(AltgradError, match=r"the run is held by pid \d+ on "), hold(folder.lock, "the run"):
            pass
    assert folder.holder() is None
