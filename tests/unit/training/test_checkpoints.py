from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from altgrad_checkpoint.local import LocalBackend

from altgrad_core.errors import RunFailed
from altgrad_core.training.checkpoint import Checkpoints, DamagedCheckpoint


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, warnings: list[str]) -> Checkpoints:
    return Checkpoints(LocalBackend(tmp_path / "checkpoints"), 2, warnings.append)


def state(step: int) -> dict[str, object]:
    weight = torch.full((4, 4), float(step))
    return {"model": {"w": weight, "tied": weight, "fp8": weight.to(torch.float8_e5m2)},
            "optimizer": {"state": {0: {"exp_avg": weight * 2}}, "lr": 0.1}, "step": step}  # fmt: skip


def save(checkpoints: Checkpoints, step: int, best: int | None = None) -> None:
    checkpoints.save(step, state(step))
    checkpoints.point(latest=checkpoints.name(step), best=None if best is None else checkpoints.name(best))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(checkpoints: Checkpoints) -> None:
    save(checkpoints, 7)
    name, back = checkpoints.load_newest()
    assert name == "step-000007"
    assert torch.equal(back["model"]["w"], torch.full((4, 4), 7.0))
    assert back["model"]["tied"] is back["model"]["w"]
    assert back["model"]["fp8"].dtype is torch.float8_e5m2
    assert back["optimizer"]["state"][0]["exp_avg"][0, 0] == 14
    assert back["step"] == 7


def test_rotation_keeps_newest_best_and_anomalies(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save_anomaly(1, state(1))
    for step in range(1, 6):
        save(checkpoints, step, best=2 if step > 1 else None)
    assert files(tmp_path / "checkpoints") == [
        "anomaly-000001", "best", "latest", "step-000002", "step-000004", "step-000005",
    ]  # fmt: skip
    assert checkpoints.backend.pointed("best") == "step-000002"
    assert checkpoints.backend.pointed("latest") == "step-000005"


def test_an_anomaly_is_never_resumed_from(checkpoints: Checkpoints) -> None:
    checkpoints.save_anomaly(9, state(9))
    assert checkpoints.load_newest() is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def old_schema(path: Path) -> None:
    manifest = path.parent / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 0}))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, old_schema])
def test_a_damaged_newest_one_is_named_and_passed_over(
    checkpoints: Checkpoints, tmp_path: Path, warnings: list[str], file: str, damage: object
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(tmp_path / "checkpoints" / "step-000002" / file)
    name, _ = checkpoints.load_newest()
    if file == "manifest.json" and damage is flip and not warnings:
        pytest.fail("a flipped byte in the manifest went unnoticed")
    assert name == "step-000001"
    assert "step-000002" in warnings[0]


def test_all_damaged_is_an_error(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1)
    truncate(tmp_path / "checkpoints" / "step-000001" / "state.json")
    with pytest.raises(DamagedCheckpoint, match="--fresh"):
        checkpoints.load_newest()


def test_a_pickle_in_place_of_tensors_is_refused(checkpoints: Checkpoints, tmp_path: Path, warnings: list[str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "boom",))

    save(checkpoints, 1)
    (tmp_path / "checkpoints" / "step-000001" / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedCheckpoint):
        checkpoints.load_newest()
    assert not (tmp_path / "boom").exists()


def test_a_save_that_fails_leaves_the_earlier_ones(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("altgrad_checkpoint.local.save_file", full)
    with pytest.raises(
        RunFailed, match=r"step-000002.*No space left.*Earlier checkpoints are untouched.*--retry-failed"
    ):
        save(checkpoints, 2)
    assert files(tmp_path / "checkpoints") == ["latest", "step-000001"]
    assert checkpoints.load_newest()[0] == "step-000001"


def test_a_delete_that_fails_is_a_warning(
    checkpoints: Checkpoints, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.backend, "delete", refuse)
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert "step-000001" in warnings[0]
    assert checkpoints.load_newest()[0] == "step-000003"


def test_pointers_are_put_right_after_a_crash(checkpoints: Checkpoints) -> None:
    """The process died between saving and pointing: the state knows which one is the best."""
    save(checkpoints, 1, best=1)
    checkpoints.save(2, state(2))
    checkpoints.point(latest="step-000002", best="step-000002")
    assert checkpoints.backend.pointed("latest") == "step-000002"
    assert checkpoints.backend.pointed("best") == "step-000002"
    checkpoints.point(latest="step-000002", best="step-000777")
    assert checkpoints.backend.pointed("best") == "step-000002", "a checkpoint that is gone is not pointed to"
