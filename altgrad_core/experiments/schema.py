"""The checked form of one run: what ``run.toml`` holds and a worker executes. Data only; nothing here imports torch."""

from __future__ import annotations

from typing import Literal

import attrs

from altgrad_core.plugins import Choice
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.training.config import AlertConfig, CheckpointConfig, TrainConfig


@attrs.frozen(kw_only=True)
class Fork:
    """``[fork]`` of a ``run.toml``: where the run branched off. ``altgrad fork`` writes it."""

    run: str
    """``<experiment>/<run>`` of the parent."""
    step: int
    """Steps that the parent had trained."""
    checkpoint: str
    """Name of the parent's checkpoint; the fork holds a copy of it, ``start-...``."""
    state_hash: str
    """sha256 over the hashes of that checkpoint's files."""

    @property
    def start(self) -> str:
        """Name of the copy of that checkpoint in the fork's own folder."""
        return f"start-{self.step:06d}"


@attrs.frozen(kw_only=True)
class RunConfig:
    """One training, complete."""

    experiment: str
    """Name of the experiment; the folder that holds its runs."""
    name: str
    """Name of the run; its folder."""
    baseline: bool = False
    """Whether the other runs of the experiment are compared with this one."""
    seed: int = attrs.field(default=42, validator=attrs.validators.ge(0))
    """Seed of initialization, batches and dropout."""
    model: Choice
    """The model and its options."""
    data: Choice
    """The dataset and its options."""
    recipe: Recipe
    """What is cast to what."""
    train: TrainConfig
    """Length, batch, optimizer and evaluation."""
    checkpoint: CheckpointConfig
    """Checkpointing."""
    probes: tuple[Choice, ...] = ()
    """What is measured."""
    alerts: AlertConfig = attrs.field(factory=AlertConfig)
    """When to warn, save and stop."""
    sinks: tuple[Choice, ...] = ()
    """Who else receives the events; ``events.jsonl`` and the console always do."""
    launcher: Choice = attrs.field(factory=lambda: Choice("process"))
    """How the run's worker is started."""
    fork: Fork | None = None
    """The checkpoint of another run that this one begins with; None: initialized weights."""


@attrs.frozen(kw_only=True)
class Experiment:
    """A checked ``experiments.toml``."""

    name: str
    """Name of the experiment."""
    runs: tuple[RunConfig, ...]
    """The runs in file order, matrices expanded."""
    path: str
    """The file it came from."""

    @property
    def baseline(self) -> RunConfig | None:
        """The run that others are compared with, None when the file marks none."""
        return next((run for run in self.runs if run.baseline), None)


Status = Literal["pending", "running", "done", "failed", "stopped", "interrupted"]
