"""Whatever happens to the newest checkpoint's bytes: it is named, passed over, and the one before is used."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from altgrad_checkpoint import manifest as manifests
from altgrad_checkpoint.local import LocalBackend
from altgrad_checkpoint.manifest import Manifest

from altgrad_core.training.checkpoint import Checkpoints, DamagedCheckpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "notes.json", "manifest.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2."""
    checkpoints = Checkpoints(LocalBackend(tmp_path / "checkpoints"), 5, print)
    for step in (1, 2):
        state = {"model": {"w": torch.full((2, 2), float(step))}, "optimizer": {0: torch.ones(3)}, "step": step}
        checkpoints.save(step, state, kind="step", notes={"sinks": {"csv": {"bytes": 7}}})
        checkpoints.settle(wait=True)
    return tmp_path / "checkpoints"


def newest(folder: Path) -> tuple[str, list[str]]:
    """Return which checkpoint is used and what is said."""
    warnings: list[str] = []
    loaded = Checkpoints(LocalBackend(folder), 5, warnings.append).load_newest()
    assert loaded is not None
    assert loaded.state["step"] == loaded.state["model"]["w"][0, 0] == int(loaded.saved.name[-1])
    return loaded.saved.name, warnings


def resign(checkpoint: Path) -> None:
    """Write the manifest anew, so that every hash is right: what one does who means harm."""
    (checkpoint / "manifest.json").write_text(manifests.describe_files(checkpoint, 0.0).dump())


def test_whole_ones_are_used(folder: Path) -> None:
    assert newest(folder) == ("step-000002", [])
    resign(folder / "step-000002")
    assert newest(folder) == ("step-000002", [])


@pytest.mark.parametrize("file", FILES)
def test_truncated_at_every_place(folder: Path, file: str) -> None:
    path = folder / "step-000002" / file
    whole = path.read_bytes()
    backend = LocalBackend(folder)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint, match="step-000002"):
            backend.verify("step-000002")
        with pytest.raises(DamagedCheckpoint, match="step-000002"):
            backend.load("step-000002")
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert "step-000002 is damaged" in warning


@pytest.mark.parametrize("file", FILES)
def test_a_bit_flipped_in_every_byte(folder: Path, file: str) -> None:
    path = folder / "step-000002" / file
    whole = path.read_bytes()
    backend = LocalBackend(folder)
    for place in range(len(whole)):
        for bit in (place % 8, 5):  # bit 5 is upper or lower case
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(DamagedCheckpoint, match="step-000002"):
                backend.verify("step-000002")
    assert newest(folder)[0] == "step-000001"


def no_file(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()


def a_folder(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    (checkpoint / file).mkdir()


def a_dangling_link(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    (checkpoint / file).symlink_to("nowhere")


def longer(checkpoint: Path, file: str) -> None:
    with (checkpoint / file).open("ab") as opened:
        opened.write(b"\n")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [no_file, a_folder, a_dangling_link, longer])
def test_a_file_that_is_not_the_one_that_was_written(
    folder: Path, file: str, damage: Callable[[Path, str], None]
) -> None:
    damage(folder / "step-000002", file)
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert file.removesuffix(".json") in warning
    assert "Trying the one before" in warning


@pytest.mark.parametrize(("schema", "which"), [(1, "an older"), (3, "a newer")])
def test_another_schema(folder: Path, schema: int, which: str) -> None:
    path = folder / "step-000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    before = {file: file.read_bytes() for file in (folder / "step-000002").iterdir()}
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert f"schema {schema}, written by {which} AltGrad; this one reads 2" in warning
    assert before == {file: file.read_bytes() for file in (folder / "step-000002").iterdir()}, "it is left alone"


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"schema": 2}', '{"schema": "2"}', "[" * 100_000, "\xff"])
def test_a_manifest_of_nonsense(folder: Path, text: str) -> None:
    (folder / "step-000002" / "manifest.json").write_bytes(text.encode("latin-1"))
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert "its manifest cannot be read" in warning


def test_an_empty_folder(folder: Path) -> None:
    (folder / "step-000003").mkdir()
    name, (warning,) = newest(folder)
    assert name == "step-000002"
    assert "step-000003 is damaged: the folder is empty" in warning


def test_an_extra_file(folder: Path) -> None:
    (folder / "step-000002" / "notes.txt").write_text("mine")
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert "step-000002 is refused: it holds 'notes.txt', which AltGrad did not write; without it" in warning


@pytest.mark.parametrize("content", [b"step-000007\n", b"", b"\xff\xfe\x00"])
def test_a_pointer_to_nothing(folder: Path, content: bytes) -> None:
    (folder / "latest").write_bytes(content)
    name, (warning,) = newest(folder)
    assert name == "step-000002", "the folders are what counts"
    assert "'latest' names" in warning


def test_all_are_gone_but_the_pointer(folder: Path) -> None:
    for step in (1, 2):
        shutil.rmtree(folder / f"step-00000{step}")
    warnings: list[str] = []
    assert Checkpoints(LocalBackend(folder), 5, warnings.append).load_newest() is None
    assert "'step-000002', a checkpoint that is not there" in warnings[0]


def test_all_damaged_is_an_error(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-00000{step}" / "state.json").write_text("{}")
    warnings: list[str] = []
    with pytest.raises(DamagedCheckpoint, match=r"None of the 2 .* newest: .*step-000002 .*state.json.*--fresh"):
        Checkpoints(LocalBackend(folder), 5, warnings.append).load_newest()
    assert len(warnings) == 1


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.mark,))


def pickled(mark: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(mark)))


def saved_by_torch(mark: Path, path: Path) -> None:
    torch.save({"w": Bomb(mark)}, path)


@pytest.mark.parametrize("write", [pickled, saved_by_torch])
@pytest.mark.parametrize("signed", [False, True], ids=["as it is", "with right hashes"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "state.json", "notes.json", "model.pt", "data.pkl", "x.safetensors"]
)
def test_nothing_pickled_is_ever_loaded(
    folder: Path, tmp_path: Path, write: Callable[[Path, Path], None], signed: bool, file: str
) -> None:
    mark = tmp_path / "boom"
    write(mark, folder / "step-000002" / file)
    if signed:
        resign(folder / "step-000002")
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert "step-000002 is" in warning
    assert not mark.exists()


def test_the_bomb_is_a_real_one(tmp_path: Path) -> None:
    pickled(tmp_path / "one", tmp_path / "a")
    pickle.loads((tmp_path / "a").read_bytes())
    saved_by_torch(tmp_path / "two", tmp_path / "b")
    torch.load(tmp_path / "b", weights_only=False)
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"tensors": ["model/w"]}',
        '{"tensors": ["model/absent"], "state": {}}',
        '{"tensors": ["absent/w"], "state": {}}',
        '{"tensors": [], "state": {"model": {"$": "tensor", "name": "model/w"}}}',
        '{"tensors": [], "state": {"$": "dict", "items": 3}}',
        '{"tensors": [], "state": {"$": "float", "value": "x"}}',
        '{"tensors": [], "state": 3}',
        '{"tensors": [], "state": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_a_state_of_nonsense_with_right_hashes(folder: Path, text: str) -> None:
    (folder / "step-000002" / "state.json").write_text(text)
    resign(folder / "step-000002")
    name, (warning,) = newest(folder)
    assert name == "step-000001"
    assert "step-000002 is" in warning


@pytest.mark.parametrize("name", ["../step-000001/model.safetensors", "/etc/passwd", "model.pt", "."])
def test_a_manifest_that_lists_what_altgrad_does_not_write(folder: Path, name: str) -> None:
    checkpoint = folder / "step-000002"
    manifest = manifests.read(checkpoint)
    forged: Manifest = attrs.evolve(manifest, files={**manifest.files, name: manifest.files["state.json"]})
    (checkpoint / "manifest.json").write_text(forged.dump())
    used, (warning,) = newest(folder)
    assert used == "step-000001"
    assert repr(name) in warning
