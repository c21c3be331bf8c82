"""Checkpoints in a local folder.

One folder a checkpoint::

    step-000100/
        model.safetensors  optimizer.safetensors  ...   one file for each top-level key that has tensors
        state.json                                      everything else, with references to the tensors
        manifest.json                                   schema version, size and sha256 of each file
    latest  best                                        text files holding the name of a checkpoint

A checkpoint is written to a hidden temporary folder, every file and the folder synced, then renamed; only a finished one
ever has its final name. Loading checks every file against the manifest and runs no code: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from altgrad_core.errors import RunFailed
from altgrad_core.training.checkpoint import DamagedCheckpoint, Saved

SCHEMA = 1
_TEMPORARY = ".saving-"


class LocalBackend:
    """The backend ``local``; see the module's text for the layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, tensors: dict[str, torch.Tensor], state: Any) -> Saved:
        """Store tensors and a JSON value under ``name``, durably. A full or read-only disk is a ``RunFailed``."""
        started = time.perf_counter()
        temporary = self.folder / f"{_TEMPORARY}{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            manifest = self._write(temporary, tensors, state)
            final = self.folder / name
            if final.exists():
                self._remove(name)
            temporary.rename(final)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _failed(self.folder / name, error) from error
        files = manifest["files"]
        return Saved(
            name=name,
            path=f"{self.folder.name}/{name}",
            bytes=sum(file["bytes"] for file in files.values()),
            seconds=time.perf_counter() - started,
            state_hash=_state_hash(manifest),
        )

    def _write(self, folder: Path, tensors: dict[str, torch.Tensor], state: Any) -> dict[str, Any]:
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            group, _, rest = path.partition("/")
            groups.setdefault(group, {})[rest or group] = tensor.cpu()
        for group, content in groups.items():
            save_file(content, folder / f"{group}.safetensors")
        (folder / "state.json").write_text(json.dumps({"tensors": list(tensors), "state": state}, allow_nan=False))
        files = {}
        for file in sorted(folder.iterdir()):
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            _sync(file)
        manifest = {"schema": SCHEMA, "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _sync(folder / "manifest.json")
        _sync(folder)
        return manifest

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], Any]:
        """Return what was saved, after checking sizes and hashes."""
        folder = self.folder / name
        self.verify(name)
        content = json.loads((folder / "state.json").read_text())
        groups = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
        tensors = {}
        for path in content["tensors"]:
            group, _, rest = path.partition("/")
            tensors[path] = groups[group][rest or group]
        return tensors, content["state"]

    def verify(self, name: str) -> str:
        """Check a checkpoint against its manifest and return its state hash; raises ``DamagedCheckpoint``."""
        folder = self.folder / name
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            schema, files = manifest["schema"], manifest["files"]
            if schema != SCHEMA:
                raise DamagedCheckpoint(
                    f"The checkpoint {folder} has schema {schema}, this AltGrad reads {SCHEMA}; "
                    "use the version of AltGrad that wrote it (see env.json)."
                )
            for file, facts in files.items():
                path = folder / file
                if not path.is_file():
                    raise DamagedCheckpoint(f"The checkpoint {folder} is damaged: {file} is missing.")
                if path.stat().st_size != facts["bytes"]:
                    raise DamagedCheckpoint(
                        f"The checkpoint {folder} is damaged: {file} has {path.stat().st_size} bytes, "
                        f"{facts['bytes']} were written."
                    )
                if _sha256(path) != facts["sha256"]:
                    raise DamagedCheckpoint(f"The checkpoint {folder} is damaged: the sha256 of {file} differs.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpoint(
                f"The checkpoint {folder} is damaged: its manifest cannot be read ({error})."
            ) from error
        return _state_hash(manifest)

    def names(self) -> list[str]:
        """Return the finished checkpoints in the order of their step."""
        if not self.folder.is_dir():
            return []
        found = [path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(found, key=lambda name: (name.rpartition("-")[2].zfill(20), name))

    def delete(self, name: str) -> None:
        """Remove a checkpoint."""
        self._remove(name)

    def _remove(self, name: str) -> None:
        # Renamed first, so that one half deleted is never taken for a whole one.
        doomed = self.folder / f"{_TEMPORARY}deleted-{name}"
        shutil.rmtree(doomed, ignore_errors=True)
        (self.folder / name).rename(doomed)
        shutil.rmtree(doomed)

    def point(self, pointer: str, name: str) -> None:
        """Write the pointer file anew and rename it into place."""
        temporary = self.folder / f"{_TEMPORARY}{pointer}"
        try:
            temporary.write_text(f"{name}\n")
            _sync(temporary)
            temporary.replace(self.folder / pointer)
            _sync(self.folder)
        except OSError as error:
            raise _failed(self.folder / pointer, error) from error

    def pointed(self, pointer: str) -> str | None:
        """Return the name in the pointer file."""
        path = self.folder / pointer
        return path.read_text().strip() if path.is_file() else None


def _failed(path: Path, error: Exception) -> RunFailed:
    return RunFailed(
        f"Could not write the checkpoint {path}: {error}. Earlier checkpoints are untouched. "
        "Make room or make the folder writable, then give the same command again with --retry-failed."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_hash(manifest: dict[str, Any]) -> str:
    hashes = "".join(f"{name}:{facts['sha256']}\n" for name, facts in sorted(manifest["files"].items()))
    return hashlib.sha256(hashes.encode()).hexdigest()
