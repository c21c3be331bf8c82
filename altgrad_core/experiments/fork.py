"""``altgrad fork``: a run that begins with a checkpoint of another one, with something changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_run, override_run
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.matrix import check_folder_name
from altgrad_core.experiments.schema import Fork, RunConfig

if TYPE_CHECKING:
    from altgrad_core.training.checkpoint import CheckpointBackend

_STEP = re.compile(r"\d+")


@attrs.frozen
class Moment:
    """``RUN@STEP``: a run's folder and a place in its training."""

    folder: RunFolder
    place: str
    """A number of steps, ``latest``, ``best``, or the name of a checkpoint."""

    @property
    def step(self) -> int | None:
        """The number of steps, None for a pointer or a name."""
        return int(self.place) if _STEP.fullmatch(self.place) else None


def parse_moment(text: str) -> Moment:
    """Return what ``RUN@STEP`` means; raises ``AltgradError`` for anything else, or a folder that holds no run."""
    path, at, place = text.rpartition("@")
    if not at or not path or not place:
        raise AltgradError(
            f"Expected RUN@STEP, such as runs/e5m2-vs-bf16/e5m2@100 (or @latest, @best, @anomaly-000123), got '{text}'."
        )
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise AltgradError(f"There is no run in {path}: expected a folder runs/<experiment>/<run> with a run.toml.")
    return Moment(folder, place)


def find_checkpoint(moment: Moment, backend: CheckpointBackend) -> str:
    """Return the name of the checkpoint at a moment; raises ``AltgradError`` that lists those that there are."""
    from altgrad_core.training.checkpoint import Checkpoints

    names = backend.names()
    wanted = moment.place
    if moment.step is not None:
        wanted = Checkpoints.name(moment.step)
    elif moment.place in ("latest", "best"):
        wanted = backend.pointed(moment.place) or moment.place
    # A branch's own first checkpoint has its parent's step.
    found = next((name for name in (wanted, wanted.replace("step-", "start-")) if name in names), None)
    if found is None:
        there = ", ".join(names) or "none"
        raise AltgradError(
            f"{moment.folder.path} has no checkpoint '{wanted}'; there are: {there}. Checkpoints are kept every "
            "checkpoint.every steps, the newest checkpoint.keep of them."
        )
    return found


def plan_fork(moment: Moment, name: str, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of the fork ``name`` of the run at ``moment``; ``overrides`` are those of ``--set``.

    Raises ``AltgradError`` for a name that is taken by the parent, a checkpoint that is not there, or a wrong override.
    """
    from altgrad_core.experiments.assembly import open_checkpoints
    from altgrad_core.training.checkpoint import steps_done

    check_folder_name(name)
    parent = load_run(moment.folder.config)
    experiment, run = moment.folder.path.resolve().parts[-2:]
    if name.casefold() == run.casefold():
        raise AltgradError(f"--name: the fork needs a name other than its parent's, '{name}'.")
    backend = open_checkpoints(parent, moment.folder, _no_warning).backend
    saved = backend.verify(find_checkpoint(moment, backend))
    fork = Fork(
        run=f"{experiment}/{run}",
        step=steps_done(saved.name),
        checkpoint=saved.name,
        state_hash=saved.state_hash,
    )
    changed = override_run(moment.folder.config, overrides)
    config = attrs.evolve(changed, experiment=experiment, name=name, baseline=False, fork=fork)
    if config.train.steps <= fork.step:
        raise AltgradError(
            f"The fork would have nothing to train: it begins after step {fork.step} and train.steps is "
            f"{config.train.steps}. Give it more: --set train.steps={2 * fork.step}."
        )
    return config


def bring_start(config: RunConfig, folder: RunFolder) -> None:
    """Copy the parent's checkpoint into the fork's folder, unless it is there; the parent lies beside it.

    Raises ``AltgradError`` when the parent's checkpoint is not that from which the fork was made.
    """
    from altgrad_core.experiments.assembly import open_checkpoints

    assert config.fork is not None
    own = open_checkpoints(config, folder, _no_warning).backend
    if own.names():
        return
    parent = RunFolder(folder.path.parent / config.fork.run.rpartition("/")[2])
    content, saved = open_checkpoints(load_run(parent.config), parent, _no_warning).backend.load(config.fork.checkpoint)
    if saved.state_hash != config.fork.state_hash:
        raise AltgradError(
            f"The checkpoint {saved.name} of {parent.path} is not the one that this fork was made from: the parent was "
            "trained again. Fork it anew, under another name or with --fresh."
        )
    own.save(f"start-{config.fork.step:06d}", content)


def _no_warning(message: str) -> None:
    del message
