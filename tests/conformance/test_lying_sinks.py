"""Sinks that lie, each caught by the check that is named for it. Without its lie each of them is the sink ``csv``."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.outcomes import Failed
from altgrad_csv.sink import CsvSink
from sink_suites import CsvConformance, full_disk

from altgrad_core.training.events import Event


class Lying(CsvConformance):
    """A sink that is not what it says."""

    Sink: type[CsvSink]

    def build(self, folder: Path) -> CsvSink:
        return self.Sink(folder / "metrics.csv")


class Drops(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event.get("step") != 3:
                super().write(event)


class Doubles(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            super().write(event)
            if event.get("step") == 3:
                super().write(event)


class Reorders(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event["event"] == "metrics":
                event["values"] = dict(sorted(event["values"].items(), reverse=True))
            super().write(event)


class LosesTheLast(Lying):
    """Holds an event back until the next one comes, and forgets it when it is closed."""

    class Sink(CsvSink):
        held: Event | None = None

        def write(self, event: Event) -> None:
            if event["event"] == "metrics":
                event, self.held = self.held, event
                if event is not None:
                    super().write(event)


class TakesTheStepForAValue(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if "step" in event and "values" not in event:
                event = {"event": "metrics", "step": event["step"], "values": {"step": event["step"]}}
            super().write(event)


class KnowsTheKindsOfToday(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event["event"] == "weather":
                raise KeyError(event["event"])
            super().write(event)


class Rounds(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event["event"] == "metrics":
                event["values"] = {name: float(f"{float(value):.8g}") for name, value in event["values"].items()}
            super().write(event)


class LeavesOutNan(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event["event"] == "metrics":
                event["values"] = {name: value for name, value in event["values"].items() if value != "NaN"}
            super().write(event)


class ReadsAscii(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if event["event"] == "metrics":
                values = event["values"].items()
                event["values"] = {name.encode("ascii", "replace").decode(): value for name, value in values}
            super().write(event)


class HasAPathInItsState(Lying):
    class Sink(CsvSink):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "path": self.path}


class HasATupleInItsState(Lying):
    class Sink(CsvSink):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "shape": (1, 2)}


class ForgetsOnResume(Lying):
    class Sink(CsvSink):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self._file.truncate(0)


class KeepsWhatCameAfterTheCheckpoint(Lying):
    class Sink(CsvSink):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self._bytes = self.path.stat().st_size


class OpensAnew(Lying):
    """Every process begins an empty file; so what an earlier one stored is gone, whether it closed it or not."""

    class Sink(CsvSink):
        def __init__(self, path: Path) -> None:
            path.unlink(missing_ok=True)
            super().__init__(path)

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass


class DoesNotMissItsStore(Lying):
    class Sink(CsvSink):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            if self.path.stat().st_size:
                super().load_state_dict(state)


class KeepsAFailedWrite(Lying):
    """Stores value by value; the disk is full after the first."""

    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            for name, value in event.get("values", {}).items():
                super().write({**event, "values": {name: value}})

    def failing(self, folder: Path) -> AbstractContextManager[None]:
        return full_disk((folder / "metrics.csv").stat().st_size + 40)


class HidesAFailedWrite(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            with contextlib.suppress(OSError):
                super().write(event)


class ClosesOnce(Lying):
    class Sink(CsvSink):
        def close(self) -> None:
            assert not self._file.closed, "closed already"
            super().close()


class SharesItsFile(Lying):
    def build(self, folder: Path) -> CsvSink:
        return CsvSink(folder.parent / "metrics.csv")

    def stored(self, folder: Path) -> list[tuple[int, str, float]]:
        return super().stored(folder.parent)


class RemembersEverything(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            super().write(event)
            self.names = getattr(self, "names", []) + list(event.get("values", []))

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "names": list(getattr(self, "names", []))}


class DrawsAnId(Lying):
    class Sink(CsvSink):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.id = random.random()


class SaysWhatItDoes(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> str:  # type: ignore[override]
            super().write(event)
            return "stored"


class SaysGoodbye(Lying):
    class Sink(CsvSink):
        def close(self) -> str:  # type: ignore[override]
            super().close()
            return "closed"


class ReturnsTrue(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> bool:  # type: ignore[override]
            super().write(event)
            return True


class DropsSimulations(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            if not event.get("simulated"):
                super().write(event)


class SetsOtherThreads(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            super().write(event)
            torch.set_num_threads(3)


class SetsAnotherType(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            super().write(event)
            torch.set_default_dtype(torch.float64)


class SetsDeterminism(Lying):
    class Sink(CsvSink):
        def write(self, event: Event) -> None:
            super().write(event)
            torch.use_deterministic_algorithms(True)


class SetsAVariable(Lying):
    class Sink(CsvSink):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.environ["OMP_NUM_THREADS"] = "7"


class LeavesAThread(Lying):
    over = threading.Event()

    class Sink(CsvSink):
        def close(self) -> None:
            super().close()
            threading.Thread(target=LeavesAThread.over.wait).start()


CAUGHT = [
    (Drops, "every_value_in_order", "missing: step 3"),
    (Doubles, "every_value_in_order", "there twice: step 3"),
    (Reorders, "every_value_in_order", "another order"),
    (LosesTheLast, "every_value_in_order", "missing: step 11"),
    (LosesTheLast, "in_a_run", "missing: step 5"),
    (TakesTheStepForAValue, "other_events_are_passed_over", "not of this run"),
    (KnowsTheKindsOfToday, "other_events_are_passed_over", "weather"),
    (Rounds, "values_of_every_size", "another value"),
    (LeavesOutNan, "non_finite_values", "missing: step 0"),
    (ReadsAscii, "names_of_every_kind", "missing: step 3"),
    (HasAPathInItsState, "state_is_json", "not JSON serializable"),
    (HasATupleInItsState, "state_is_json", "not of JSON types"),
    (OpensAnew, "goes_on_after_close", "missing: step 0"),
    (ForgetsOnResume, "goes_on_from_every_state_after_a_kill", "missing: step 0"),
    (KeepsWhatCameAfterTheCheckpoint, "goes_on_from_every_state_after_a_kill", "there twice"),
    (KeepsWhatCameAfterTheCheckpoint, "killed_again_and_again", "there twice"),
    (KeepsWhatCameAfterTheCheckpoint, "the_last_value_wins_after_a_kill", "there twice"),
    (KeepsWhatCameAfterTheCheckpoint, "another_course_after_a_kill", "not of this run"),
    (DoesNotMissItsStore, "a_store_that_is_gone", "did not raise StateLost"),
    (KeepsAFailedWrite, "a_write_that_raises_has_stored_nothing", "there twice"),
    (HidesAFailedWrite, "a_write_that_raises_has_stored_nothing", "did not raise, though the store failed"),
    (ClosesOnce, "close", "closed"),
    (SharesItsFile, "two_side_by_side", "values"),
    (RemembersEverything, "many_values", "state"),
    (DrawsAnId, "the_process_is_left_alone", "random generator of Python"),
    (SaysWhatItDoes, "in_a_run", "warnings of what write"),
    (SaysGoodbye, "in_a_run", "1 warnings of what write"),
    (ReturnsTrue, "every_value_in_order", "None, or a text for the user, got True"),
    (DropsSimulations, "a_simulation", "missing: step 0"),
    (SetsOtherThreads, "the_process_is_left_alone", "torch's number of threads"),
    (SetsAnotherType, "the_process_is_left_alone", "torch's default type"),
    (SetsDeterminism, "the_process_is_left_alone", "torch's deterministic algorithms"),
    (SetsAVariable, "the_process_is_left_alone", "the environment variable OMP_NUM_THREADS"),
    (LeavesAThread, "the_process_is_left_alone", "goes on, and the process could not end"),
]


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a sink has changed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    LeavesAThread.over.clear()
    threads, kind, strict = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)
    torch.use_deterministic_algorithms(strict)
    LeavesAThread.over.set()


@pytest.mark.parametrize(
    ("liar", "check", "said"), CAUGHT, ids=[f"{liar.__name__}-{check}" for liar, check, _ in CAUGHT]
)
def test_a_lie_is_caught(liar: type[Lying], check: str, said: str, tmp_path: Path) -> None:
    suite = liar()
    suite.many_values = 10_000
    arguments = {"again": True} if check.startswith("a_write") else {}
    with pytest.raises((AssertionError, Failed, KeyError, TypeError, ValueError), match=said):
        getattr(suite, f"test_{check}")(tmp_path, **arguments)


def test_every_check_catches_somebody() -> None:
    checks = {name.removeprefix("test_") for name in dir(CsvConformance) if name.startswith("test_")}
    assert checks == {check for _, check, _ in CAUGHT}


@pytest.mark.parametrize(
    ("module", "failed"),
    [
        ('cannot = {"lost": "no"}', "unknown clause lost; known: order, going_back"),
        ("def test_many_values(self, tmp_path): pass", "this test has checked nothing"),
        ('cannot = {"state_lost": "the service is shared"}', ""),
    ],
)
def test_the_counts_are_printed_and_zero_is_a_failure(tmp_path: Path, module: str, failed: str) -> None:
    """A suite in a project of its own, run by pytest as a third party would."""
    (tmp_path / "test_third.py").write_text(
        "from altgrad_csv.sink import CsvSink\n"
        "from altgrad_core.testing import SinkConformance\n"
        "import csv\n"
        "class TestThird(SinkConformance):\n"
        "    many_values = 2000\n"
        "    def build(self, folder):\n"
        "        return CsvSink(folder / 'x.csv')\n"
        "    def stored(self, folder):\n"
        "        return [(int(s), n, float(v)) for s, n, v in list(csv.reader((folder / 'x.csv').open()))[1:]]\n"
        f"    {module}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_third.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if failed:
        assert done.returncode == 1
        assert failed in done.stdout
    else:
        assert done.returncode == 0, done.stdout
        assert "TestThird: " in done.stdout
        assert "; not state_lost: the service is shared" in done.stdout
        assert "failing() is not overridden, so no store that fails was tried" in done.stdout
