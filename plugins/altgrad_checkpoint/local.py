"""Checkpoints in a local folder.

One folder a checkpoint::

    step-000100/
        model.safetensors  optimizer.safetensors  ...   one file for each group of tensors
        state.json                                      everything else, with references to the tensors
        notes.json                                      what is kept beside the state: why it was saved, the sinks' state
        manifest.json                                   schema version, time, size and sha256 of each file
    latest  best                                        text files holding the name of a checkpoint

A checkpoint is written to a hidden folder ``.saving-*``, every file and the folder synced, then renamed; only a finished
one ever has its final name. One that is deleted is renamed to ``.deleted-*`` first; one that is replaced to ``.replaced-*``,
from where it comes back if a crash left nothing in its place. Loading checks every file against the
manifest and runs no code: safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from altgrad_checkpoint import manifest as manifests
from altgrad_checkpoint.manifest import NAME, NOTES, STATE, TENSORS, Manifest, sync
from altgrad_core.errors import RunFailed
from altgrad_core.training.checkpoint import Content, DamagedCheckpoint, Saved

_SAVING, _DELETED, _REPLACED = ".saving-", ".deleted-", ".replaced-"


class LocalBackend:
    """The backend ``local``; see the module's text for the layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, content: Content, told: Callable[[int], None]) -> Saved:
        """Store ``content`` under ``name``, durably. A full or read-only disk is a ``RunFailed``."""
        temporary, final = self.folder / f"{_SAVING}{name}", self.folder / name
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            manifest = _write(temporary, content, told)
            self._replace(final, temporary)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _failed(final, error) from error
        return self._saved(name, manifest)

    def load(self, name: str) -> tuple[Content, Saved]:
        """Return what was saved, after checking sizes and hashes."""
        saved = self.verify(name)
        folder = self.folder / name
        try:
            state, notes = json.loads((folder / STATE).read_text()), json.loads((folder / NOTES).read_text())
            groups = {file.stem: load_file(file) for file in folder.glob(f"*{TENSORS}")}
            tensors = {}
            for path in state["tensors"]:
                group, _, rest = path.partition("/")
                tensors[path] = groups[group][rest or group]
            return Content(tensors=tensors, state=state["state"], notes=notes), saved
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The hashes are right: somebody wrote this folder who is not this class.
            raise DamagedCheckpoint(
                f"The checkpoint {folder} is refused: its files do not hold what a checkpoint holds "
                f"({type(error).__name__}: {error})."
            ) from error

    def describe(self, name: str) -> Saved:
        """Return what the manifest says, after checking that the files it lists are there, in the sizes it says."""
        return self._saved(name, manifests.verify(self.folder / name, contents=False))

    def verify(self, name: str) -> Saved:
        """Check a checkpoint against its manifest; raises ``DamagedCheckpoint``."""
        return self._saved(name, manifests.verify(self.folder / name))

    def names(self) -> list[str]:
        """Return the finished checkpoints in the order of their step."""
        if not self.folder.is_dir():
            return []
        found = [path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(found, key=lambda name: (name.rpartition("-")[2].zfill(20), name))

    def delete(self, name: str) -> None:
        """Remove a checkpoint, and what an earlier call could not remove."""
        self._set_aside(self.folder / name)
        self._remove(_DELETED)

    def point(self, pointer: str, name: str) -> None:
        """Write the pointer file anew and rename it into place."""
        temporary = self.folder / f"{_SAVING}{pointer}"
        try:
            temporary.write_text(f"{name}\n")
            sync(temporary)
            temporary.replace(self.folder / pointer)
            sync(self.folder)
        except OSError as error:
            raise _failed(self.folder / pointer, error) from error

    def pointed(self, pointer: str) -> str | None:
        """Return the name in the pointer file."""
        path = self.folder / pointer
        return path.read_text(errors="replace").strip() if path.is_file() else None

    def clean(self) -> None:
        """Remove the folders of saves and deletions that a crash cut off; put back what nothing has replaced yet."""
        for old in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / old.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(old)
            else:
                old.rename(final)
                sync(self.folder)
        self._remove(_SAVING)
        self._remove(_DELETED)

    def _replace(self, final: Path, temporary: Path) -> None:
        if not final.exists():
            temporary.rename(final)
            return
        old = self.folder / f"{_REPLACED}{final.name}"
        if old.exists():
            shutil.rmtree(old)
        final.rename(old)
        try:
            temporary.rename(final)
        except OSError:
            old.rename(final)
            raise
        sync(self.folder)
        with contextlib.suppress(OSError):  # it takes space and does no harm; ``clean`` tries again
            shutil.rmtree(old)

    def _set_aside(self, checkpoint: Path) -> Path:
        """Rename a checkpoint that is to go, so that one half deleted is never taken for a whole one."""
        targets = (self.folder / f"{_DELETED}{checkpoint.name}-{number}" for number in itertools.count())
        return checkpoint.rename(next(target for target in targets if not target.exists()))

    def _remove(self, prefix: str) -> None:
        for path in self.folder.glob(f"{prefix}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _saved(self, name: str, manifest: Manifest) -> Saved:
        return Saved(
            name=name,
            path=f"{self.folder.name}/{name}",
            bytes=manifest.bytes,
            saved_at=manifest.saved_at,
            state_hash=manifest.state_hash,
        )


def _write(folder: Path, content: Content, told: Callable[[int], None]) -> Manifest:
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for path, tensor in content.tensors.items():
        group, _, rest = path.partition("/")
        groups.setdefault(group, {})[rest or group] = tensor
    written = 0
    for group, tensors in groups.items():
        file = folder / f"{group}{TENSORS}"
        save_file(tensors, file)
        sync(file)
        written += file.stat().st_size
        told(written)
    _write_json(folder / STATE, {"tensors": list(content.tensors), "state": content.state})
    _write_json(folder / NOTES, content.notes)
    manifest = manifests.describe_files(folder, round(time.time(), 3))
    (folder / NAME).write_text(manifest.dump())
    for name in (STATE, NOTES, NAME):
        sync(folder / name)
    sync(folder)
    return manifest


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False))


def _failed(path: Path, error: Exception) -> RunFailed:
    return RunFailed(
        f"Could not write the checkpoint {path}: {error}. Earlier checkpoints are untouched. "
        "Make room or make the folder writable, then give the same command again with --retry-failed."
    )
