"""The manifest of a checkpoint folder: what was written, and the means to tell whether it is still that.

``manifest.json`` holds the schema version, the time, and size and sha256 of every other file; last, the sha256 of all
that. Its text is a function of its content, so that no byte of it can change unnoticed either.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import attrs

from altgrad_core.training.checkpoint import DamagedCheckpoint

NAME = "manifest.json"
STATE, NOTES = "state.json", "notes.json"
TENSORS = ".safetensors"
SCHEMA = 2


@attrs.frozen(kw_only=True)
class File:
    """A file as it was written."""

    bytes: int
    """Its size."""
    sha256: str
    """Hash of its content."""


@attrs.frozen(kw_only=True)
class Manifest:
    """What was written."""

    saved_at: float
    """Unix time."""
    files: dict[str, File]
    """The files by name, the manifest left out."""

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def state_hash(self) -> str:
        """sha256 over the hashes of the files, the notes left out."""
        lines = [f"{name}:{file.sha256}\n" for name, file in sorted(self.files.items()) if name != NOTES]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def dump(self) -> str:
        """Return the text of the file."""
        content = {
            "schema": SCHEMA,
            "saved_at": self.saved_at,
            "files": {n: attrs.asdict(f) for n, f in self.files.items()},
        }
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1) + "\n"


def describe_files(folder: Path, saved_at: float) -> Manifest:
    """Return the manifest of the files that are in ``folder`` now."""
    files = {
        path.name: File(bytes=path.stat().st_size, sha256=_sha256(path))
        for path in sorted(folder.iterdir())
        if path.name != NAME
    }
    return Manifest(saved_at=saved_at, files=files)


def read(folder: Path) -> Manifest:
    """Read a checkpoint's manifest; raises ``DamagedCheckpoint`` when it is not exactly what was written."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        content: Any = json.loads(text)
        schema = content["schema"]
        if isinstance(schema, int) and schema != SCHEMA:
            raise DamagedCheckpoint(
                f"The checkpoint {folder} has schema {schema}, written by {'an older' if schema < SCHEMA else 'a newer'} "
                f"AltGrad; this one reads {SCHEMA}. Use the version of AltGrad that wrote it (see env.json)."
            )
        files = {name: File(bytes=int(f["bytes"]), sha256=str(f["sha256"])) for name, f in content["files"].items()}
        manifest = Manifest(saved_at=float(content["saved_at"]), files=files)
        if manifest.dump() != text:
            raise ValueError("it is not the text that was written")
    except FileNotFoundError:
        empty = folder.is_dir() and not any(folder.iterdir())
        raise DamagedCheckpoint(
            f"The checkpoint {folder} is damaged: {'the folder is empty' if empty else f'{NAME} is missing'}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"The checkpoint {folder} is damaged: its manifest cannot be read ({type(error).__name__}: {error})."
        ) from error
    return manifest


def verify(folder: Path, *, contents: bool = True) -> Manifest:
    """Check every file of a checkpoint; raises ``DamagedCheckpoint`` that names what is wrong.

    Without ``contents`` names and sizes alone are checked, which reads nothing but the manifest.
    """
    manifest = read(folder)
    try:
        wrong = _wrong(folder, manifest, contents=contents)
    except OSError as error:
        wrong = f"damaged: it cannot be read ({error})"
    if wrong:
        raise DamagedCheckpoint(f"The checkpoint {folder} is {wrong}.")
    return manifest


def _wrong(folder: Path, manifest: Manifest, *, contents: bool) -> str:
    """Return what is wrong with a checkpoint, empty when nothing is."""
    for name in (STATE, NOTES):
        if name not in manifest.files:
            return f"damaged: it was written without {name}"
    for name, file in manifest.files.items():
        if Path(name).name != name or not (name in (STATE, NOTES) or name.endswith(TENSORS)):
            return f"refused: its manifest lists {name!r}, which is none of the files that AltGrad writes"
        if difference := _difference(folder / name, file, contents=contents):
            return f"damaged: {name} {difference}"
    if strange := sorted({path.name for path in folder.iterdir()} - {*manifest.files, NAME}):
        listed = ", ".join(map(repr, strange))
        return f"refused: it holds {listed}, which AltGrad did not write; without it the checkpoint can be used"
    return ""


def _difference(path: Path, file: File, *, contents: bool) -> str:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.bytes:
        return f"has {path.stat().st_size} bytes, {file.bytes} were written"
    return "" if not contents or _sha256(path) == file.sha256 else "has another sha256 than when it was written"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
