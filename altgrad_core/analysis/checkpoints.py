"""The checkpoints of a run, from its folder: what is there, whether it is whole, and the weights as a file of their own.

Nothing here writes to the run's folder, so that it works while the run is trained.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from altgrad_core.analysis.runs import Run, load_run
from altgrad_core.errors import AltgradError, unknown
from altgrad_core.experiments.config import load_run as load_config
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import installed
from altgrad_core.structure import unstructure
from altgrad_core.training.checkpoint import (
    CheckpointBackend,
    Checkpoints,
    DamagedCheckpoint,
    Saved,
    checkpoint_steps,
    load_checkpoint,
)
from altgrad_core.training.events import to_json

Kept = Literal["newest", "best", "for good"]

_NAME = re.compile(r"(step|anomaly|start)-(\d+)")
_POINTERS = ("latest", "best")
# What `convert` adds to a layer: the state of its operands' scaling. Another model has no place for it.
_CAST_STATE = re.compile(r"(^|\.)\w+_cast\.scaling\.")


@attrs.frozen(kw_only=True)
class Row:
    """One checkpoint."""

    name: str
    """Its name."""
    step: int
    """The step after which it was saved; of an anomaly, the step that went wrong."""
    kind: str
    """Why it was saved, in the words of the event ``checkpoint`` and the log: ``step`` (checkpoint.every), ``best``,
    ``final``, ``interrupt`` or ``anomaly``; ``start`` for what a fork began with."""
    kept: Kept
    """Until when it stays: as one of the ``newest``, as the ``best`` until there is a better one, or ``for good``."""
    latest: bool
    """Whether the pointer ``latest`` names it."""
    best: bool
    """Whether the pointer ``best`` names it."""
    saved: Saved | None
    """What its manifest says; None when that cannot be read."""
    loss: float | None
    """Training loss of the step, when it was logged."""
    val_loss: float | None
    """Validation loss after the step, when there was an evaluation."""
    problem: str | None
    """What is wrong with it; None when nothing is, as far as it was looked at."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        facts = attrs.asdict(self, filter=lambda field, value: field.name != "saved")
        for name in ("loss", "val_loss"):
            facts[name] = None if facts[name] is None else to_json(facts[name])
        return facts | ({} if self.saved is None else attrs.asdict(self.saved))


@attrs.frozen(kw_only=True)
class Listing:
    """The checkpoints of a run."""

    run: Run
    """The run."""
    rows: tuple[Row, ...]
    """Its checkpoints, oldest first."""
    verified: bool
    """Whether every byte was read and checked."""
    lost: Mapping[str, str]
    """Pointer -> name, for pointers to a checkpoint that is not there."""

    @property
    def damaged(self) -> list[Row]:
        """The rows with a problem."""
        return [row for row in self.rows if row.problem is not None]


def list_checkpoints(folder: str | Path, *, verify: bool = False) -> Listing:
    """Read what is in the folder of a run; ``verify`` reads every byte. Raises ``AltgradError`` when it is no run's."""
    run = load_run(folder)
    config, backend = _backend(Path(folder))
    names = list(checkpoint_steps(backend))
    pointers = {pointer: backend.pointed(pointer) for pointer in _POINTERS}
    rows = [_row(run, config, backend, name, pointers, verify=verify) for name in names]
    left = set(backend.names())  # a run that is being trained rotates; what it has deleted meanwhile is not damaged
    return Listing(
        run=run,
        rows=tuple(row for row in rows if row.name in left),
        verified=verify,
        lost={p: name for p, name in pointers.items() if name is not None and name not in left},
    )


def export_weights(folder: str | Path, file: str | Path, checkpoint: str = "latest") -> Saved:
    """Write the model's weights of a checkpoint to ``file`` in the safetensors format and return the checkpoint.

    ``checkpoint`` is a name, a number of steps or a pointer (``latest``, ``best``). Tied weights are written under each of
    their names, so that ``load_state_dict`` finds all it asks for; the state of scaling policies is left out. The metadata
    tell the run, recipe, formats, step and state hash. Raises ``AltgradError`` when the file exists, or the checkpoint does
    not or is damaged.
    """
    file = Path(file)
    run = load_run(folder)
    config, backend = _backend(Path(folder))
    if not file.parent.is_dir():
        raise AltgradError(f"There is no folder {file.parent} to write {file.name} to. Make it, or choose another.")
    if file.exists():
        raise AltgradError(f"{file} exists and is not overwritten. Give another name, or remove it.")
    name = _existing(backend, checkpoint)
    loaded = load_checkpoint(backend, name)
    model = loaded.state.get("model")
    if not isinstance(model, dict) or not all(isinstance(value, torch.Tensor) for value in model.values()):
        raise DamagedCheckpoint(f"The checkpoint {loaded.saved.path} holds no weights of a model.")
    weights = {key: value.clone().contiguous() for key, value in model.items() if not _CAST_STATE.search(key)}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(weights, temporary, metadata=_metadata(run, config, loaded.saved, loaded.state["step"]))
        temporary.rename(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise AltgradError(f"Could not write {file}: {error}. Choose another place.") from error
    return loaded.saved


def _backend(folder: Path) -> tuple[RunConfig, CheckpointBackend]:
    run = RunFolder(folder)
    config = load_config(run.config)
    choice = config.checkpoint.backend
    return config, installed().get("checkpoint", choice.kind).value(choice.options, run.checkpoints)


def _row(
    run: Run,
    config: RunConfig,
    backend: CheckpointBackend,
    name: str,
    pointers: Mapping[str, str | None],
    *,
    verify: bool,
) -> Row:
    match = _NAME.fullmatch(name)
    assert match is not None
    saved, problem = None, None
    try:
        saved = backend.describe(name)
        if verify:
            backend.verify(name)
    except DamagedCheckpoint as error:
        problem = str(error)
    step = int(match[2])
    best = pointers["best"] == name
    kinds = {Path(event["path"]).name: str(event["kind"]) for event in run.checkpoints}
    every = config.checkpoint.keep_every
    kept: Kept = "best" if best else "newest"
    if match[1] != "step" or (every and step % every == 0):
        kept = "for good"
    values = run.values.get(step, {})
    return Row(
        name=name,
        step=step,
        kind=kinds.get(name, match[1]) if match[1] == "step" else match[1],
        kept=kept,
        latest=pointers["latest"] == name,
        best=best,
        saved=saved,
        loss=values.get("train/loss"),
        val_loss=values.get("val/loss"),
        problem=problem,
    )


def _existing(backend: CheckpointBackend, asked: str) -> str:
    names = list(checkpoint_steps(backend))
    name = backend.pointed(asked) if asked in _POINTERS else asked
    if asked.isdecimal():  # a fork's own first checkpoint has its parent's step
        step = Checkpoints.name(int(asked))
        name = next((name for name in (step, step.replace("step-", "start-")) if name in names), step)
    if name is None or (asked in _POINTERS and name not in names):
        holds = "is not set" if name is None else f"names {name}, which is not there"
        raise AltgradError(f"The pointer {asked} {holds}. Checkpoints: {', '.join(names) or 'none'}.")
    if name not in names:
        raise AltgradError(unknown("checkpoint", name, [*names, *_POINTERS]))
    return name


def _metadata(run: Run, config: RunConfig, saved: Saved, step: int) -> dict[str, str]:
    formats = {operand: cast.format for operand, cast in config.recipe.all_casts().items()}
    return {
        "format": "pt",  # what loaders of weight files ask for: tensors of torch
        "written_by": f"altgrad {version('altgrad')}",
        "experiment": run.experiment,
        "run": run.name,
        "recipe": config.recipe.name,
        "number_formats": json.dumps(formats),
        "step": str(step),
        "checkpoint": saved.name,
        "state_hash": saved.state_hash,
        "model": json.dumps({"kind": config.model.kind, **unstructure(config.model.options)}),
    }
