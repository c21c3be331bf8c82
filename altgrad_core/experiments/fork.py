"""``altgrad fork``: a run that begins with a checkpoint of another one, with something changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_run, override_run
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.matrix import check_folder_name
from altgrad_core.experiments.runfile import run_table
from altgrad_core.experiments.schema import Fork, RunConfig
from altgrad_core.files import write_whole

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

    def check_run(self) -> None:
        """Raise ``AltgradError`` unless the folder holds a run."""
        if not self.folder.config.is_file():
            raise AltgradError(
                f"There is no run in {self.folder.path}: expected a folder runs/<experiment>/<run> with a run.toml."
            )


def parse_moment(text: str) -> Moment:
    """Return what ``RUN@STEP`` means; raises ``AltgradError`` for anything else. Whether there is a run is not looked at."""
    path, at, place = text.rpartition("@")
    if not at or not path or not place:
        raise AltgradError(
            f"Expected RUN@STEP, such as runs/e5m2-vs-bf16/e5m2@100 (or @latest, @best, @anomaly-000123), got '{text}'."
        )
    return Moment(RunFolder(Path(path)), place)


def find_checkpoint(moment: Moment, backend: CheckpointBackend) -> str:
    """Return the name of the checkpoint at a moment; raises ``AltgradError`` that lists those that there are."""
    from altgrad_core.training.checkpoint import Checkpoints, checkpoint_steps

    names = list(checkpoint_steps(backend))
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


def plan_fork(moment: Moment, name: str, overrides: Sequence[str], *, fresh: bool = False) -> RunConfig:
    """Return the configuration of the fork ``name`` of the run at ``moment``; ``overrides`` are those of ``--set``.

    A fork that has begun is planned from what its own folder holds, so that the parent may have gone on, or be gone;
    ``fresh`` plans it from the parent again. Raises ``AltgradError`` for a name that is taken by the parent, a fork of
    that name from elsewhere, a checkpoint that is not there, or a wrong override.
    """
    check_folder_name(name)
    path = moment.folder.path.resolve()
    if name.casefold() == path.name.casefold():
        raise AltgradError(f"--name: the fork needs a name other than its parent's, '{name}'.")
    own = RunFolder(path.parent / name)
    fork = None if fresh else _begun(own)
    if fork is not None and not _names(moment, f"{path.parent.name}/{path.name}", fork):
        if own.status() != "pending":
            raise AltgradError(
                f"{own.path} is a fork of {fork.run} after step {fork.step} ({fork.checkpoint}), not of "
                f"{moment.folder.path}@{moment.place}. Name that moment to resume it; give the new fork another --name, or "
                "use --fresh, which moves the old one aside."
            )
        fork = None  # nothing was trained yet: it may begin elsewhere
    base = own.parent_config
    if fork is None:
        moment.check_run()
        base, fork = moment.folder.config, _branch(moment, f"{path.parent.name}/{path.name}")
    changed = override_run(base, overrides)
    config = attrs.evolve(changed, experiment=path.parent.name, name=name, baseline=False, fork=fork)
    if config.train.steps <= fork.step:
        raise AltgradError(
            f"The fork would have nothing to train: it begins after step {fork.step} and train.steps is "
            f"{config.train.steps}. Give it more: --set train.steps={2 * fork.step}."
        )
    return config


def check_model(config: RunConfig, folder: RunFolder, vocab_size: int) -> None:
    """Raise ``AltgradError`` when a fork that begins now has another model than its parent's checkpoint.

    Before anything is made. Where the parent is gone and the fork has its own copy, its worker finds out.
    """
    import torch

    from altgrad_core.experiments.adopt import check_parameters
    from altgrad_core.experiments.assembly import build, open_checkpoints
    from altgrad_core.training.checkpoint import load_checkpoint

    assert config.fork is not None
    parent = _parent(config.fork, folder)
    if not parent.config.is_file():
        return
    base = load_run(parent.config)
    then, now = run_table(base), run_table(config)
    backend = open_checkpoints(base, parent, _nobody).backend
    if (then["model"], then["data"]) == (now["model"], now["data"]) or config.fork.checkpoint not in backend.names():
        return
    with torch.device("meta"):
        model = build("model", config.model, vocab_size)
    check_parameters(model, load_checkpoint(backend, config.fork.checkpoint).state["model"])


def bring_start(config: RunConfig, folder: RunFolder) -> None:
    """Copy the parent's checkpoint and ``run.toml`` into the fork's folder, unless it has them; the parent lies beside it.

    What another fork of that name, which never trained, began with is replaced. Raises ``AltgradError`` when the parent's
    checkpoint is not that from which the fork was made.
    """
    from altgrad_core.experiments.assembly import open_checkpoints
    from altgrad_core.training.checkpoint import checkpoint_steps

    assert config.fork is not None
    own = open_checkpoints(config, folder, _nobody).backend
    if folder.has_checkpoints or _holds_start(own, config.fork):
        return
    parent = _parent(config.fork, folder)
    content, saved = open_checkpoints(load_run(parent.config), parent, _nobody).backend.load(config.fork.checkpoint)
    if saved.state_hash != config.fork.state_hash:
        raise AltgradError(
            f"The checkpoint {saved.name} of {parent.path} is not the one that this fork was made from: the parent was "
            "trained again. Fork it anew, under another name or with --fresh."
        )
    write_whole(folder.parent_config, parent.config.read_bytes())
    own.save(config.fork.start, content, _nobody)
    for name in checkpoint_steps(own):
        if name.startswith("start-") and name != config.fork.start:
            with suppress(OSError):  # it takes space and does no harm
                own.delete(name)


def _branch(moment: Moment, run: str) -> Fork:
    """Return where a new fork of the parent ``run`` begins, after checking the checkpoint there."""
    from altgrad_core.experiments.assembly import open_checkpoints
    from altgrad_core.training.checkpoint import checkpoint_steps

    backend = open_checkpoints(load_run(moment.folder.config), moment.folder, _nobody).backend
    saved = backend.verify(find_checkpoint(moment, backend))
    step = checkpoint_steps(backend)[saved.name]
    return Fork(run=run, step=step, checkpoint=saved.name, state_hash=saved.state_hash)


def _begun(own: RunFolder) -> Fork | None:
    """Return where the fork in a folder began, when the folder has all that is needed to go on without the parent."""
    from altgrad_core.experiments.assembly import open_checkpoints

    if not (own.config.is_file() and own.parent_config.is_file()):
        return None
    config = load_run(own.config)
    if config.fork is None:
        return None
    if own.has_checkpoints or _holds_start(open_checkpoints(config, own, _nobody).backend, config.fork):
        return config.fork
    return None


def _parent(fork: Fork, folder: RunFolder) -> RunFolder:
    """Return the folder of the run that the fork in ``folder`` branched off, which lies beside it."""
    return RunFolder(folder.path.parent / fork.run.rpartition("/")[2])


def _holds_start(own: CheckpointBackend, fork: Fork) -> bool:
    """Tell whether the fork's copy of the parent's checkpoint is there, whole, and the one that ``fork`` names."""
    from altgrad_core.training.checkpoint import DamagedCheckpoint

    try:
        return fork.start in own.names() and own.verify(fork.start).state_hash == fork.state_hash
    except DamagedCheckpoint:
        return False


def _names(moment: Moment, run: str, fork: Fork) -> bool:
    """Tell whether a moment of ``run`` may be where ``fork`` began; a pointer may have moved on since."""
    if run != fork.run:
        return False
    if moment.step is not None:
        return moment.step == fork.step
    return moment.place in ("latest", "best", fork.checkpoint)


def _nobody(told: object) -> None:
    """Take what is told, and do nothing."""
