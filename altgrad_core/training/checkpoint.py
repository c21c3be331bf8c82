"""Checkpoints: which are written, which are kept, which one a resumed run starts from. A backend does the storing.

Names: ``step-000100`` for what rotation may delete, ``anomaly-000123`` for the state before the first non-finite update,
kept for good. Two pointers, ``latest`` and ``best``, move only after the checkpoint they point to is durable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.training import tree

_STEP = re.compile(r"step-\d+")


class DamagedCheckpoint(AltgradError):
    """A checkpoint is incomplete or its bytes are not those that were written."""


@attrs.frozen(kw_only=True)
class Saved:
    """A checkpoint that is durable."""

    name: str
    """Its name, such as ``step-000100``."""
    path: str
    """Where a person finds it, relative to the run folder."""
    bytes: int
    """Its size."""
    seconds: float
    """How long saving took."""
    state_hash: str
    """sha256 over the hashes of its files."""


class CheckpointBackend(Protocol):
    """Stores named checkpoints and named pointers to them. ``save`` and ``point`` are atomic and durable on return."""

    def save(self, name: str, tensors: dict[str, torch.Tensor], state: Any) -> Saved:
        """Store tensors and a JSON value under ``name``; an existing checkpoint of that name is replaced whole."""

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], Any]:
        """Return what was saved, on the CPU; raises ``DamagedCheckpoint`` when it is not exactly that."""

    def names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""

    def delete(self, name: str) -> None:
        """Remove a checkpoint."""

    def point(self, pointer: str, name: str) -> None:
        """Make ``pointer`` (``latest``, ``best``) name a checkpoint."""

    def pointed(self, pointer: str) -> str | None:
        """Return the name that a pointer holds, None when it was never set."""


class Checkpoints:
    """The policy over a backend: keep the newest ``keep``, the best one, and every anomaly.

    What goes wrong without ending the run (a damaged checkpoint passed over, one that cannot be deleted) goes to ``warn``.
    """

    def __init__(self, backend: CheckpointBackend, keep: int, warn: Callable[[str], None]) -> None:
        self.backend = backend
        self.keep = keep
        self.warn = warn

    @staticmethod
    def name(step: int) -> str:
        """Return the name of the checkpoint after ``step`` updates."""
        return f"step-{step:06d}"

    def save(self, step: int, state: dict[str, Any]) -> Saved:
        """Save ``state`` as the checkpoint after ``step`` updates."""
        return self.backend.save(self.name(step), *tree.split(state))

    def point(self, *, latest: str, best: str | None) -> None:
        """Make the pointers name these checkpoints, which are durable, then rotate."""
        names = self.backend.names()
        for pointer, name in (("latest", latest), ("best", best)):
            if name in names and self.backend.pointed(pointer) != name:
                self.backend.point(pointer, name)
        self._rotate(names)

    def save_anomaly(self, step: int, state: dict[str, Any]) -> Saved:
        """Save the state in which step ``step`` went wrong; never rotated away, never resumed from."""
        return self.backend.save(f"anomaly-{step:06d}", *tree.split(state))

    def load_newest(self) -> tuple[str, dict[str, Any]] | None:
        """Return (name, state) of the newest checkpoint that is whole, None when there is none."""
        names = [name for name in self.backend.names() if _STEP.fullmatch(name)]
        for name in reversed(names):
            try:
                return name, tree.join(*self.backend.load(name))
            except DamagedCheckpoint as error:
                self.warn(f"{error} Trying the one before.")
        if names:
            raise DamagedCheckpoint(
                f"All {len(names)} checkpoints are damaged. Start over with --fresh; the old folder is kept aside."
            )
        return None

    def _rotate(self, names: list[str]) -> None:
        names = [name for name in names if _STEP.fullmatch(name)]
        spared = {self.backend.pointed("best"), self.backend.pointed("latest")}
        for name in names[: -self.keep]:
            if name in spared:
                continue
            try:
                self.backend.delete(name)
            except OSError as error:
                self.warn(f"Could not delete the old checkpoint {name}: {error}. It stays; delete it by hand.")
