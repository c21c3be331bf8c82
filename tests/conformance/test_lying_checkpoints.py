"""Checkpoint backends that lie, each caught by the check that is named for it; without its lie each is ``local``."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from altgrad_checkpoint import local
from altgrad_checkpoint import manifest as manifests
from altgrad_checkpoint.local import LocalBackend

from altgrad_core.errors import RunFailed
from altgrad_core.testing import CheckpointConformance
from altgrad_core.training.checkpoint import Content, Saved

Told = Callable[[int], None]


class Lying(CheckpointConformance):
    Backend: type[LocalBackend] = LocalBackend

    def build(self, folder: Path) -> LocalBackend:
        return self.Backend(folder)


class SavesFloat32(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        tensors = {n: t.float() if t.is_floating_point() else t for n, t in content.tensors.items()}
        return super().save(name, attrs.evolve(content, tensors=tensors), told)


class CleansNan(LocalBackend):
    """One NaN is as good as another."""

    def save(self, name: str, content: Content, told: Told) -> Saved:
        tensors = {n: t + 0 if t.dtype is torch.float32 else t for n, t in content.tensors.items()}
        return super().save(name, attrs.evolve(content, tensors=tensors), told)


class DropsEmptyTensors(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        tensors = {n: t for n, t in content.tensors.items() if t.numel()}
        return super().save(name, attrs.evolve(content, tensors=tensors), told)


class ForgetsTheNotes(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        return super().save(name, attrs.evolve(content, notes={}), told)


class TakesFromItsCaller(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        saved = super().save(name, content, told)
        content.tensors.popitem()
        return saved


class WantsTensors(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        assert content.tensors, "nothing to save"
        return super().save(name, content, told)


class TellsOfBytesLeft(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        told(10**6)
        return super().save(name, content, told)


class TellsMilliseconds(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        saved = super().save(name, content, told)
        return attrs.evolve(saved, bytes=1)


class HashesTheNotes(LocalBackend):
    def _saved(self, name: str, manifest: manifests.Manifest) -> Saved:
        saved = super()._saved(name, manifest)
        return attrs.evolve(saved, state_hash=saved.state_hash + manifest.files["notes.json"].sha256)


class HashesTheShapes(LocalBackend):
    def _saved(self, name: str, manifest: manifests.Manifest) -> Saved:
        return attrs.evolve(super()._saved(name, manifest), state_hash=str(manifest.files["model.safetensors"].bytes))


class HashesTheModelOnly(LocalBackend):
    def _saved(self, name: str, manifest: manifests.Manifest) -> Saved:
        hashed = [manifest.files[file].sha256 for file in ("model.safetensors", "state.json") if file in manifest.files]
        return attrs.evolve(super()._saved(name, manifest), state_hash=",".join(hashed))


class SortsByText(LocalBackend):
    def names(self) -> list[str]:
        return sorted(super().names())


class ShowsWhatIsHalfDone(LocalBackend):
    def names(self) -> list[str]:
        found = [path.name for path in self.folder.glob("*") if path.is_dir() and "step" in path.name]
        return sorted({name.removeprefix(".saving-") for name in found})


class MixesOldAndNew(LocalBackend):
    """Writes into the folder that is there."""

    def _replace(self, final: Path, temporary: Path) -> None:
        if not final.exists():
            super()._replace(final, temporary)
            return
        for file in temporary.iterdir():
            file.replace(final / file.name)
        temporary.rmdir()


class DeletesAllBefore(LocalBackend):
    def delete(self, name: str) -> None:
        for other in self.names()[: self.names().index(name) + 1]:
            super().delete(other)


class DeletesInVain(LocalBackend):
    def delete(self, name: str) -> None:
        if (self.folder / name).exists():
            super().delete(name)


class HasOnePointer(LocalBackend):
    def point(self, pointer: str, name: str) -> None:
        super().point("latest", name)

    def pointed(self, pointer: str) -> str | None:
        return super().pointed("latest")


class RemembersPointers(LocalBackend):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pointers: dict[str, str] = {}

    def point(self, pointer: str, name: str) -> None:
        self.pointers[pointer] = name

    def pointed(self, pointer: str) -> str | None:
        return self.pointers.get(pointer)


class RaisesKeyError(LocalBackend):
    def describe(self, name: str) -> Saved:
        if name not in self.names():
            raise KeyError(name)
        return super().describe(name)


class SharesItsTensors(LocalBackend):
    kept: dict[str, Content] = {}

    def save(self, name: str, content: Content, told: Told) -> Saved:
        self.kept[name] = content
        return super().save(name, content, told)

    def load(self, name: str) -> tuple[Content, Saved]:
        return self.kept[name], self.verify(name)


class KeepsTheRestInMind(LocalBackend):
    """Stores float64 as bfloat16 would, and gives back what it has kept: until the process ends."""

    kept: dict[str, Content] = {}

    def save(self, name: str, content: Content, told: Told) -> Saved:
        tensors = {n: t.bfloat16().double() if t.dtype is torch.float64 else t for n, t in content.tensors.items()}
        saved = super().save(name, attrs.evolve(content, tensors=tensors), told)
        self.kept[saved.state_hash] = attrs.evolve(content, tensors={n: t.clone() for n, t in content.tensors.items()})
        return saved

    def load(self, name: str) -> tuple[Content, Saved]:
        content, saved = super().load(name)
        return self.kept.get(saved.state_hash, content), saved


class LooksAtSizesOnly(LocalBackend):
    def verify(self, name: str) -> Saved:
        return self.describe(name)


class Unpickles(LocalBackend):
    def load(self, name: str) -> tuple[Content, Saved]:
        content, saved = super().load(name)
        pickle.loads(pickle.dumps(self.folder))
        return content, saved


class WritesInPlace(LocalBackend):
    """Under the final name, from the first byte on."""

    def save(self, name: str, content: Content, told: Told) -> Saved:
        final = self.folder / name
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir(parents=True)
        try:
            return self._saved(name, local._write(final, content, told))
        except Exception as error:
            raise RunFailed(str(error)) from error


class PointsInPlace(LocalBackend):
    def point(self, pointer: str, name: str) -> None:
        with (self.folder / pointer).open("w") as file:
            file.flush()
            (self.folder / f"{pointer}.log").write_text(name)
            file.write(name)


class RaisesWhatItGot(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        try:
            return super().save(name, content, told)
        except RunFailed as failed:
            raise OSError(str(failed)) from failed


class MakesRoom(LocalBackend):
    """A disk that is full wants the oldest one deleted."""

    def save(self, name: str, content: Content, told: Told) -> Saved:
        try:
            return super().save(name, content, told)
        except RunFailed:
            for other in self.names():
                self.delete(other)
            raise


class HidesAFullDisk(LocalBackend):
    def save(self, name: str, content: Content, told: Told) -> Saved:
        with contextlib.suppress(RunFailed):
            return super().save(name, content, told)
        return Saved(name=name, path=name, bytes=1, saved_at=2e9, state_hash="")


class WritesState(LocalBackend):
    """Keeps the numbers of the state as text of six digits."""

    def save(self, name: str, content: Content, told: Told) -> Saved:
        state = json.loads(json.dumps(content.state), parse_float=lambda text: float(f"{float(text):.6g}"))
        return super().save(name, attrs.evolve(content, state=state), told)


CAUGHT = [
    (SavesFloat32, "round_trip", "'model/float64' is torch.float32"),
    (CleansNan, "round_trip", "'optimizer/nan_payloads' has other bits"),
    (DropsEmptyTensors, "round_trip", "tensors are missing"),
    (ForgetsTheNotes, "round_trip", "the notes is"),
    (TakesFromItsCaller, "round_trip", "has changed what it was given"),
    (WritesState, "round_trip", "the state is"),
    (WantsTensors, "an_empty_state", "nothing to save"),
    (TellsOfBytesLeft, "what_is_told", "went down"),
    (TellsMilliseconds, "what_is_told", "cannot take 1"),
    (HashesTheNotes, "hash_of_the_state", "equal states have different state_hash"),
    (HashesTheShapes, "hash_of_the_state", "a bit of model/blocks.0.weight is another one"),
    (HashesTheModelOnly, "hash_of_the_state", "a bit of optimizer/state/0/exp_avg is another one"),
    (SortsByText, "names", "oldest first is"),
    (MixesOldAndNew, "replace", "refused|damaged|otherwise"),
    (DeletesAllBefore, "delete", "others with it"),
    (DeletesInVain, "delete", "DID NOT RAISE"),
    (HasOnePointer, "pointers", "they were set to"),
    (RemembersPointers, "pointers", "they were set to"),
    (RaisesKeyError, "what_is_not_there", "raised KeyError"),
    (SharesItsTensors, "loaded_tensors_are_the_caller_s", "came back otherwise"),
    (LooksAtSizesOnly, "damage_is_found", "did not raise DamagedCheckpoint"),
    (Unpickles, "nothing_is_unpickled", "unpickles pathlib"),
    (RaisesWhatItGot, "a_full_disk", "a full disk is a RunFailed, got OSError"),
    (MakesRoom, "a_full_disk", "after a save that failed"),
    (HidesAFullDisk, "a_full_disk", "did not raise, though no file"),
    (WritesInPlace, "a_full_disk", "after a save that failed"),
    (ShowsWhatIsHalfDone, "others_look_on", "step-0000"),
]
AFTER_A_KILL = {
    WritesInPlace: "damaged",
    PointsInPlace: "point, killed .* 'latest' is ''",
    MixesOldAndNew: "step-000002",
}


@pytest.mark.parametrize(
    ("backend", "check", "said"), CAUGHT, ids=[f"{backend.__name__}-{check}" for backend, check, _ in CAUGHT]
)
def test_a_lie_is_caught(backend: type[LocalBackend], check: str, said: str, tmp_path: Path) -> None:
    suite = Lying()
    suite.Backend = backend
    arguments = {"size": 200} if check == "a_full_disk" else {}
    with pytest.raises((Exception, pytest.fail.Exception), match=said):
        getattr(suite, f"test_{check}")(tmp_path, **arguments)


class ForgetsWithItsProcess(Lying):
    Backend = KeepsTheRestInMind


@pytest.mark.slow
def test_a_lie_is_caught_from_another_process(tmp_path: Path) -> None:
    ForgetsWithItsProcess().test_round_trip(tmp_path / "this")
    with pytest.raises(AssertionError, match="'model/float64' has other bits"):
        ForgetsWithItsProcess().test_another_process(tmp_path / "another")


class KilledWritesInPlace(Lying):
    Backend = WritesInPlace


class KilledPointsInPlace(Lying):
    Backend = PointsInPlace


class KilledMixesOldAndNew(Lying):
    Backend = MixesOldAndNew


@pytest.mark.slow
@pytest.mark.parametrize("suite", [KilledWritesInPlace, KilledPointsInPlace, KilledMixesOldAndNew])
def test_a_lie_is_caught_by_killing(suite: type[Lying], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=AFTER_A_KILL[suite.Backend]):
        suite().test_killed(tmp_path)


def test_every_check_catches_somebody() -> None:
    checks = {name.removeprefix("test_") for name in dir(CheckpointConformance) if name.startswith("test_")}
    assert checks == {check for _, check, _ in CAUGHT} | {"another_process", "killed"}
