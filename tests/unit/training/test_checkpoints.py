"""Which checkpoints are kept, which pointers move when, and that saving in the background changes nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from altgrad_checkpoint.local import LocalBackend

from altgrad_core.errors import RunFailed
from altgrad_core.training.checkpoint import Checkpoints, Content, Finished, Saved


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(folder: Path, warnings: list[str]) -> Checkpoints:
    return Checkpoints(LocalBackend(folder), 2, warnings.append)


def state(step: int) -> dict[str, object]:
    weight = torch.full((4, 4), float(step))
    return {"model": {"w": weight, "tied": weight, "t": torch.arange(6.0).view(2, 3).t(), "fp8": weight.to(torch.float8_e5m2)},
            "optimizer": {"state": {0: {"exp_avg": weight * 2}}, "lr": 0.1}, "step": step}  # fmt: skip


def save(checkpoints: Checkpoints, step: int, best: int | None = None, kind: str = "step") -> Finished:
    name = None if best is None else checkpoints.name(best)
    checkpoints.save(step, state(step), kind=kind, notes={"sinks": {"at": step}}, best=name)
    finished = checkpoints.settle(wait=True)
    assert finished is not None
    return finished


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(checkpoints: Checkpoints) -> None:
    finished = save(checkpoints, 7)
    back = checkpoints.load_newest()
    assert back.saved == finished.saved
    assert back.saved.name == "step-000007"
    assert torch.equal(back.state["model"]["w"], torch.full((4, 4), 7.0))
    assert back.state["model"]["tied"] is back.state["model"]["w"]
    assert torch.equal(back.state["model"]["t"], torch.arange(6.0).view(2, 3).t())
    assert back.state["model"]["fp8"].dtype is torch.float8_e5m2
    assert back.state["optimizer"]["state"][0]["exp_avg"][0, 0] == 14
    assert back.state["step"] == 7
    assert back.notes == {"sinks": {"at": 7}, "passed_over": []}


def test_the_state_hash_is_that_of_the_state(tmp_path: Path) -> None:
    """Where a file sink stands, and when it was saved, is no part of what is trained."""

    def saved(where: str, step: int, notes: object) -> Saved:
        one = Checkpoints(LocalBackend(tmp_path / where), 2, print)
        one.save(step, state(step), kind="step", notes={"sinks": notes})
        return one.settle(wait=True).saved

    assert saved("a", 1, 1).state_hash == saved("b", 1, {"bytes": 77}).state_hash
    assert saved("c", 2, 1).state_hash != saved("d", 1, 1).state_hash


def test_rotation_keeps_newest_best_and_anomalies(checkpoints: Checkpoints, folder: Path) -> None:
    save(checkpoints, 1, kind="anomaly")
    assert files(folder) == ["anomaly-000001"], "no pointer names an anomaly"
    for step in range(1, 6):
        save(checkpoints, step, best=2 if step > 1 else None)
    assert files(folder) == ["anomaly-000001", "best", "latest", "step-000002", "step-000004", "step-000005"]
    assert checkpoints.backend.pointed("best") == "step-000002"
    assert checkpoints.backend.pointed("latest") == "step-000005"


def test_one_of_every_m_steps_is_kept_for_good(folder: Path, warnings: list[str]) -> None:
    checkpoints = Checkpoints(LocalBackend(folder), 1, warnings.append, keep_every=3)
    for step in range(1, 9):
        save(checkpoints, step)
    assert files(folder) == ["latest", "step-000003", "step-000006", "step-000008"]
    assert [checkpoints.kept_for_good(step) for step in (3, 4, 6)] == [True, False, True]
    assert not Checkpoints(LocalBackend(folder), 1, print).kept_for_good(3)


def test_an_anomaly_is_never_resumed_from(checkpoints: Checkpoints) -> None:
    save(checkpoints, 9, kind="anomaly")
    assert checkpoints.load_newest() is None


def test_those_passed_over_neither_count_nor_go(checkpoints: Checkpoints, folder: Path, warnings: list[str]) -> None:
    """Damaged ones of a future that is trained again must not push out the whole ones."""
    for step in (10, 20, 30):
        save(checkpoints, step)
    again = Checkpoints(LocalBackend(folder), 2, warnings.append)
    (folder / "step-000030" / "state.json").write_text("")
    assert again.load_newest().saved.name == "step-000020"
    save(again, 22)
    save(again, 24)
    assert files(folder) == ["latest", "step-000022", "step-000024", "step-000030"]
    again = Checkpoints(LocalBackend(folder), 2, warnings.append)  # another process, which finds a whole one at once
    (folder / "step-000030").rename(folder / "aside")
    assert again.load_newest().saved.name == "step-000024"
    (folder / "aside").rename(folder / "step-000030")
    save(again, 26)
    save(again, 28)
    assert files(folder) == ["latest", "step-000026", "step-000028", "step-000030"]
    save(again, 30)
    assert files(folder) == ["latest", "step-000028", "step-000030"], "trained again and replaced, it is whole"
    assert again.load_newest().state["step"] == 30


class Slow(LocalBackend):
    """Takes as long as the test lets it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun, self.go = threading.Event(), threading.Event()

    def save(self, name: str, content: Content, told: Callable[[int], None]) -> Saved:
        self.begun.set()
        assert self.go.wait(30)
        return super().save(name, content, told)


@pytest.fixture
def slow(folder: Path, warnings: list[str]) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(Slow(folder), 2, warnings.append)
    yield checkpoints
    checkpoints.backend.go.set()
    checkpoints.settle(wait=True)


def test_what_is_saved_is_the_moment_of_the_save(slow: Checkpoints, folder: Path) -> None:
    """Training changes weights, moments and lists in place while the thread writes."""
    live = state(3) | {"probe": {"history": [1, 2]}}
    slow.save(3, live, kind="step", notes={"sinks": {"rows": [1]}})
    assert slow.backend.begun.wait(30)
    assert slow.settle(wait=False) is None
    with torch.no_grad():
        live["model"]["w"].fill_(-1)
        live["optimizer"]["state"][0]["exp_avg"].mul_(100)
        live["optimizer"]["lr"] = 7
        live["probe"]["history"].append(3)
    assert files(folder.parent) == [], "nothing is written yet"
    slow.backend.go.set()
    finished = slow.settle(wait=True)
    back = slow.load_newest()
    assert finished.saved == back.saved
    assert torch.equal(back.state["model"]["w"], torch.full((4, 4), 3.0))
    assert torch.equal(back.state["optimizer"]["state"][0]["exp_avg"], torch.full((4, 4), 6.0))
    assert back.state["optimizer"]["lr"] == 0.1
    assert back.state["probe"]["history"] == [1, 2]


def test_a_second_save_waits_for_the_first(slow: Checkpoints, folder: Path) -> None:
    slow.save(1, state(1), kind="step", notes={})
    threading.Timer(0.3, slow.backend.go.set).start()
    first = slow.settle(wait=True)
    slow.save(2, state(2), kind="step", notes={})
    second = slow.settle(wait=True)
    assert (first.step, second.step) == (1, 2)
    assert first.blocked_s < 0.25
    assert second.blocked_s > 0.1, "the wait for the first is what training paid for the second"
    assert files(folder) == ["latest", "step-000001", "step-000002"]
    assert slow.load_newest().state["step"] == 2


def test_pointers_move_after_the_checkpoint_is_durable(slow: Checkpoints, folder: Path) -> None:
    slow.backend.go.set()
    save(slow, 1, best=1)
    slow.backend.go.clear()
    slow.save(2, state(2), kind="best", notes={}, best="step-000002")
    assert slow.backend.begun.wait(30)
    assert slow.backend.pointed("latest") == slow.backend.pointed("best") == "step-000001"
    slow.backend.go.set()
    slow.settle(wait=True)
    assert slow.backend.pointed("latest") == slow.backend.pointed("best") == "step-000002"


def test_buffers_are_made_once(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    first = {name: buffer.data_ptr() for name, buffer in checkpoints._copy._buffers.items()}
    save(checkpoints, 2)
    assert {name: buffer.data_ptr() for name, buffer in checkpoints._copy._buffers.items()} == first
    assert len(first) == 4, "tied weights are copied once"
    checkpoints.save(3, {"model": {"w": torch.zeros(5)}}, kind="step", notes={})
    checkpoints.settle(wait=True)
    assert torch.equal(checkpoints.load_newest().state["model"]["w"], torch.zeros(5))
    assert len(checkpoints._copy._buffers) == 1, "what is no longer saved is let go"


def test_a_save_that_fails_is_told_and_leaves_the_earlier_ones(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("altgrad_checkpoint.local.save_file", full)
    checkpoints.save(2, state(2), kind="step", notes={})
    with pytest.raises(
        RunFailed, match=r"step-000002.*No space left.*Earlier checkpoints are untouched.*--retry-failed"
    ):
        checkpoints.settle(wait=True)
    assert checkpoints.settle(wait=True) is None, "it is told once"
    assert files(folder) == ["latest", "step-000001"]
    assert checkpoints.load_newest().saved.name == "step-000001"


def test_a_delete_that_fails_is_a_warning_and_is_tried_again(
    checkpoints: Checkpoints, folder: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied", str(folder / name))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.backend, "delete", refuse)
        for step in (1, 2, 3, 4):
            save(checkpoints, step)
    assert [warning.split(":")[0] for warning in warnings] == [
        "Could not delete the old checkpoint step-000001",
        "Could not delete the old checkpoint step-000002",
    ], "each is told once"
    assert files(folder) == ["latest", "step-000001", "step-000002", "step-000003", "step-000004"]
    save(checkpoints, 5)
    assert files(folder) == ["latest", "step-000004", "step-000005"]
    assert len(warnings) == 2


def test_what_a_deletion_left_goes_with_the_next(
    checkpoints: Checkpoints, folder: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    for step in (1, 2):
        save(checkpoints, step)
    with monkeypatch.context() as patched:
        patched.setattr("altgrad_checkpoint.local.shutil.rmtree", busy)
        with pytest.raises(OSError, match="busy"):
            checkpoints.backend.delete("step-000001")
    assert files(folder) == [".deleted-step-000001-0", "latest", "step-000002"]
    save(checkpoints, 3)
    save(checkpoints, 4)
    assert files(folder) == ["latest", "step-000003", "step-000004"]
    assert warnings == []


def test_what_a_crash_left_is_cleaned_and_nothing_else(checkpoints: Checkpoints, folder: Path) -> None:
    save(checkpoints, 1)
    for name in (".saving-step-000002", ".deleted-step-000000-0", ".mine"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    (folder / ".saving-latest").write_text("step-0000")
    checkpoints.clean()
    assert files(folder) == [".mine", "latest", "step-000001"]


def test_cleaning_before_the_first_save(checkpoints: Checkpoints, warnings: list[str]) -> None:
    checkpoints.clean()
    assert checkpoints.load_newest() is None
    assert warnings == []


def test_pointers_are_put_right_after_a_crash(checkpoints: Checkpoints) -> None:
    """The process died between saving and pointing: the state knows which one is the best."""
    save(checkpoints, 1, best=1)
    save(checkpoints, 2)
    checkpoints.point(latest="step-000002", best="step-000002")
    assert checkpoints.backend.pointed("latest") == "step-000002"
    assert checkpoints.backend.pointed("best") == "step-000002"
    checkpoints.point(latest="step-000002", best="step-000777")
    assert checkpoints.backend.pointed("best") == "step-000002", "a checkpoint that is gone is not pointed to"


def test_an_old_one_of_the_same_name_is_there_until_it_is_replaced(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name == ".saving-step-000001":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    checkpoints.save(1, state(99), kind="step", notes={})
    with pytest.raises(RunFailed, match="Input/output error"):
        checkpoints.settle(wait=True)
    assert files(folder) == ["latest", "step-000001"]
    assert checkpoints.load_newest().state["step"] == 1


@pytest.mark.parametrize("moment", ["between the renames", "before the old one is gone"])
def test_a_checkpoint_that_is_saved_again_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An anomaly met once more after a crash, and killed again while it is replaced: one of the two stays."""
    backend = LocalBackend(tmp_path)

    def content(number: float) -> Content:
        return Content(tensors={"model/w": torch.full((3,), number)}, state={"s": 1}, notes={})

    class Killed(BaseException):
        pass

    first = backend.save("anomaly-000123", content(1.0), print)
    with monkeypatch.context() as patch:
        if moment == "between the renames":
            rename = Path.rename

            def killed(self: Path, target: Path) -> Path:
                if self.name.startswith(".saving-"):
                    raise Killed
                return rename(self, target)

            patch.setattr(Path, "rename", killed)
        else:

            def dies(*_: object) -> None:
                raise Killed

            patch.setattr("altgrad_checkpoint.local.shutil.rmtree", dies)
        with pytest.raises(Killed):
            backend.save("anomaly-000123", content(2.0), print)
    again = LocalBackend(tmp_path)
    again.clean()
    assert again.names() == ["anomaly-000123"]
    saved = again.verify("anomaly-000123")
    assert (saved.state_hash == first.state_hash) == (moment == "between the renames")
    assert [path.name for path in tmp_path.iterdir()] == ["anomaly-000123"]
    again.save("anomaly-000123", content(3.0), print)
    assert [path.name for path in tmp_path.iterdir()] == ["anomaly-000123"]


def test_events_are_on_the_disk_before_a_checkpoint_has_its_name(folder: Path) -> None:
    there: list[list[str]] = []
    threads: list[int] = []

    def sync() -> None:
        there.append(files(folder) if folder.exists() else [])
        threads.append(threading.get_ident())

    checkpoints = Checkpoints(LocalBackend(folder), 2, print, sync_events=sync)
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert there == [[], ["latest", "step-000001"]]
    assert threading.get_ident() not in threads, "no step waits for the disk"


def test_events_that_cannot_be_brought_to_the_disk_leave_no_checkpoint(folder: Path) -> None:
    def sync() -> None:
        raise RunFailed("Could not bring events.jsonl to the disk")

    checkpoints = Checkpoints(LocalBackend(folder), 2, print, sync_events=sync)
    with pytest.raises(RunFailed, match="to the disk"):
        save(checkpoints, 1)
    assert not folder.exists()
