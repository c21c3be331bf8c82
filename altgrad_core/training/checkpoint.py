"""Checkpoints: which are written, which are kept, which one a resumed run starts from. A backend does the storing.

Names: ``step-000100`` for the state after a step; kept for good are ``anomaly-000123``, the state before step 123, which went
wrong, and ``start-000100``, what a run that branched off another began with. Two pointers, ``latest`` and ``best``, move only
after the checkpoint they point to is durable, and rotation deletes only after both have moved.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.training import tree
from altgrad_core.training.saving import BackgroundJob, HostCopy

_STEP = re.compile(r"step-(\d+)")
_NAME = re.compile(r"(step|start|anomaly)-(\d+)")


class DamagedCheckpoint(AltgradError):
    """A checkpoint is incomplete, its bytes are not those that were written, or another version wrote them."""


@attrs.frozen(kw_only=True)
class Saved:
    """A checkpoint that is durable."""

    name: str
    """Its name, such as ``step-000100``."""
    path: str
    """Where a person finds it, relative to the run folder."""
    bytes: int
    """Its size."""
    saved_at: float
    """Unix time at which it was written."""
    state_hash: str
    """sha256 over the training state: equal for equal states, whatever the sinks noted beside them."""


@attrs.frozen(kw_only=True)
class Content:
    """What a backend stores under a name."""

    tensors: dict[str, torch.Tensor]
    """Contiguous tensors on the CPU by name; ``group/rest``, the groups being few."""
    state: Any
    """A JSON value that refers to the tensors by name; with them it makes up the state that is hashed."""
    notes: Any
    """A JSON value that is kept beside the state and has no part in its hash."""


class CheckpointBackend(Protocol):
    """Stores named checkpoints and named pointers to them. ``save`` and ``point`` are atomic and durable on return.

    ``save``, ``point`` and ``delete`` are called from a background thread, never two at once; ``describe``, ``verify``
    and ``names`` also from other processes, while a run is being trained.
    """

    def save(self, name: str, content: Content, told: Callable[[int], None]) -> Saved:
        """Store ``content``; an existing checkpoint of that name is replaced whole.

        ``told`` takes the bytes that are written so far; call it as often as you like.
        """

    def load(self, name: str) -> tuple[Content, Saved]:
        """Return what was saved, on the CPU; raises ``DamagedCheckpoint`` when it is not exactly that."""

    def describe(self, name: str) -> Saved:
        """Return what was written, without reading all of it; raises ``DamagedCheckpoint`` for damage seen that way."""

    def verify(self, name: str) -> Saved:
        """Read all of it; raises ``DamagedCheckpoint``, which says what is wrong, when it is not what was written."""

    def names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""

    def delete(self, name: str) -> None:
        """Remove a checkpoint; ``OSError`` when it cannot be, or not all of it."""

    def point(self, pointer: str, name: str) -> None:
        """Make ``pointer`` (``latest``, ``best``) name a checkpoint."""

    def pointed(self, pointer: str) -> str | None:
        """Return the name that a pointer holds, None when it was never set."""

    def clean(self) -> None:
        """Remove what a process that died left half written or half deleted; ``OSError`` when it cannot be.

        Called at a run's start by the process that holds the run, so that nobody else is writing.
        """


@attrs.frozen(kw_only=True)
class Finished:
    """A save that has come to its end."""

    step: int
    """The step that it belongs to."""
    kind: str
    """Why it was saved: step, best, anomaly, interrupt, final."""
    saved: Saved
    """The checkpoint."""
    seconds: float
    """How long writing took, in the background."""
    blocked_s: float
    """How long training waited: for the copy, and for a save before that was still running."""
    warnings: tuple[str, ...]
    """What went wrong beside it without harm, such as an old checkpoint that could not be deleted."""


@attrs.frozen(kw_only=True)
class Loaded:
    """A checkpoint that was found whole."""

    saved: Saved
    """The checkpoint."""
    state: dict[str, Any]
    """The state as it was given to ``Checkpoints.save``, tensors on the CPU."""
    notes: dict[str, Any]
    """The notes as they were given."""


class Checkpoints:
    """The policy over a backend: keep the newest ``keep``, every ``keep_every`` steps one, the best, and every anomaly.

    Saves run in the background; ``settle`` fetches how they ended, and must be called before the next ``save``. What
    goes wrong without ending the run (a damaged checkpoint passed over, one that cannot be deleted) goes to ``warn``.
    ``sync_events`` makes what was told up to a save durable; it is called in the background, before the save.
    """

    def __init__(
        self,
        backend: CheckpointBackend,
        keep: int,
        warn: Callable[[str], None],
        *,
        keep_every: int = 0,
        sync_events: Callable[[], None] | None = None,
    ) -> None:
        self.backend, self.keep, self.keep_every, self.warn = backend, keep, keep_every, warn
        self._sync_events = sync_events
        self.bytes = 0
        """What the tensors of the last save take."""
        self.written = 0
        """How much of that is written."""
        self._copy = HostCopy()
        self._job: BackgroundJob[Finished] = BackgroundJob()
        self._passed_over: set[str] = set()
        self._told: set[str] = set()

    @staticmethod
    def name(step: int) -> str:
        """Return the name of the checkpoint after ``step`` updates."""
        return f"step-{step:06d}"

    def kept_for_good(self, step: int) -> bool:
        """Tell whether the checkpoint after ``step`` updates is one of every ``keep_every``."""
        return bool(self.keep_every) and step % self.keep_every == 0

    def save(
        self, step: int, state: dict[str, Any], *, kind: str, notes: dict[str, Any], best: str | None = None
    ) -> None:
        """Copy ``state`` and begin to save it as the checkpoint after ``step`` updates; returns after the copy.

        Once it is durable, ``latest`` names it, ``best`` the checkpoint of that name, and old ones are rotated away. A
        checkpoint of kind ``anomaly`` is the state in which step ``step`` went wrong: never rotated away, never resumed
        from. ``notes`` are plain values kept beside the state.
        """
        assert self._job.idle, "settle before the next save: the copy of the one before is still being written"
        blocked_s, started = self._job.waited_s, time.perf_counter()
        passed_over = sorted(self._passed_over - {self.name(step)})
        tensors, skeleton = tree.split({**state, "notes": {**notes, "passed_over": passed_over}})
        content = Content(tensors=self._copy.take(tensors), notes=skeleton.pop("notes"), state=skeleton)
        self.bytes, self.written = sum(t.numel() * t.element_size() for t in content.tensors.values()), 0
        blocked_s += time.perf_counter() - started
        self._job.start(functools.partial(self._write, step, kind, content, best, blocked_s))

    def settle(self, *, wait: bool) -> Finished | None:
        """Return the save that has ended since the last call, None when there is none; ``wait`` for one that runs.

        Raises what the save raised: ``RunFailed`` for a full or read-only disk.
        """
        finished = self._job.result(wait=wait)
        for warning in finished.warnings if finished else ():
            self.warn(warning)
        return finished

    def point(self, *, latest: str, best: str | None) -> None:
        """Make the pointers name these checkpoints, as far as they are there."""
        names = self.backend.names()
        for pointer, name in (("latest", latest), ("best", best)):
            if name in names and self.backend.pointed(pointer) != name:
                self.backend.point(pointer, name)

    def load_newest(self) -> Loaded | None:
        """Return the newest checkpoint that is whole, None when there is none; those passed over are never deleted."""
        names = [name for name in self.backend.names() if _STEP.fullmatch(name)]
        latest = self.backend.pointed("latest")
        if latest is not None and latest not in names:
            self.warn(f"The pointer 'latest' names {latest!r}, a checkpoint that is not there.")
        errors = []
        for name in reversed(names):
            try:
                found = load_checkpoint(self.backend, name)
                self._passed_over.update(found.notes["passed_over"])
                return found
            except DamagedCheckpoint as error:
                errors.append(error)
                self._passed_over.add(name)
                if len(errors) < len(names):
                    self.warn(f"{error} Trying the one before.")
        if errors:
            raise DamagedCheckpoint(
                f"None of the {len(errors)} checkpoints can be used. The newest: {errors[0]} "
                "Start over with --fresh; the old folder is kept aside."
            )
        return None

    def clean(self) -> None:
        """Remove what a crashed process of this run left half written; only for the process that holds the run."""
        try:
            self.backend.clean()
        except OSError as error:
            self.warn(f"Could not remove what a crash left behind: {error}. It takes space, and does no harm.")

    def _note_written(self, bytes: int) -> None:
        self.written = min(bytes, self.bytes)

    def _write(self, step: int, kind: str, content: Content, best: str | None, blocked_s: float) -> Finished:
        started = time.perf_counter()
        warnings: list[str] = []
        if self._sync_events is not None:
            self._sync_events()  # a checkpoint that outlives a power cut without the metrics before it would lose them
        if kind == "anomaly":
            saved = self.backend.save(f"anomaly-{step:06d}", content, self._note_written)
        else:
            saved = self.backend.save(self.name(step), content, self._note_written)
            self._passed_over.discard(saved.name)
        seconds = time.perf_counter() - started
        if kind != "anomaly":
            self.point(latest=saved.name, best=best)
            warnings = self._rotate({saved.name, best})
        return Finished(
            step=step, kind=kind, saved=saved, seconds=seconds, blocked_s=blocked_s, warnings=tuple(warnings)
        )

    def _rotate(self, spared: set[str | None]) -> list[str]:
        """Delete what is too old and return what to warn of; what could not be deleted is tried again the next time."""
        steps = {name: int(match[1]) for name in self.backend.names() if (match := _STEP.fullmatch(name))}
        old = [name for name in steps if name not in self._passed_over][: -self.keep]
        spared |= {self.backend.pointed("best"), self.backend.pointed("latest")}
        warnings = []
        for name in old:
            if name in spared or self.kept_for_good(steps[name]):
                continue
            try:
                self.backend.delete(name)
            except OSError as error:
                if str(error) not in self._told:
                    warnings.append(f"Could not delete the old checkpoint {name}: {error}. The next save tries again.")
                self._told.add(str(error))
        return warnings


def checkpoint_steps(backend: CheckpointBackend) -> dict[str, int]:
    """Return name -> steps that the training had done in that state, oldest first.

    A name that is no checkpoint's, such as that of a copy that somebody has put beside them, is left out.
    """
    matches = [match for name in backend.names() if (match := _NAME.fullmatch(name))]
    return {
        match[0]: int(match[2]) - (match[1] == "anomaly") for match in matches
    }  # an anomaly is from before its step


def load_checkpoint(backend: CheckpointBackend, name: str) -> Loaded:
    """Return a checkpoint after checking it; raises ``DamagedCheckpoint`` when it is not what was saved."""
    content, saved = backend.load(name)
    try:
        state = tree.join(content.tensors, content.state)
        notes = tree.join(content.tensors, content.notes)
        if not (isinstance(state, dict) and isinstance(notes, dict)):
            raise TypeError("expected two tables")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"The checkpoint {saved.path} is damaged: its state does not go with its tensors "
            f"({type(error).__name__}: {error})."
        ) from error
    return Loaded(saved=saved, state=state, notes=notes)
