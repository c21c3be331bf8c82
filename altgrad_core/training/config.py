"""The options of a training: ``[train]``, ``[checkpoint]`` and ``[alerts]``. Data only; nothing here imports torch."""

from __future__ import annotations

from typing import Any

import attrs

from altgrad_core.plugins import Choice


def _at_least(low: float) -> Any:
    return attrs.validators.ge(low)


def _above(low: float) -> Any:
    return attrs.validators.gt(low)


@attrs.frozen(kw_only=True)
class TrainConfig:
    """``[train]``: length, batch, optimizer and evaluation."""

    steps: int = attrs.field(default=300, validator=_at_least(1))
    """Optimizer steps."""
    batch_size: int = attrs.field(default=16, validator=_at_least(1))
    """Sequences in one forward pass."""
    accumulate: int = attrs.field(default=1, validator=_at_least(1))
    """Forward and backward passes a step; their gradients are averaged."""
    learning_rate: float = attrs.field(default=6e-4, validator=_above(0))
    """Peak learning rate, reached after the warmup."""
    min_learning_rate: float | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(0)))
    """Learning rate that the cosine ends at; a tenth of ``learning_rate`` when not given."""
    warmup_steps: int = attrs.field(default=0, validator=_at_least(0))
    """Steps of linear warmup from zero."""
    weight_decay: float = attrs.field(default=0.1, validator=_at_least(0))
    """Decoupled weight decay of the matrices (parameters of two or more dimensions)."""
    grad_clip: float = attrs.field(default=1.0, validator=_at_least(0))
    """Largest global L2 norm of the gradient; 0 switches clipping off."""
    eval_every: int = attrs.field(default=100, validator=_at_least(0))
    """Steps between evaluations on the validation split; 0: only after the last step."""
    eval_batches: int = attrs.field(default=20, validator=_at_least(1))
    """Batches of one evaluation."""
    log_every: int = attrs.field(default=1, validator=_at_least(1))
    """Steps between logged steps; probes run on logged steps only."""
    optimizer: Choice
    """The optimizer and its options."""

    @property
    def final_learning_rate(self) -> float:
        """Learning rate of the last step of the cosine."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate


@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """``[checkpoint]``: how often, how many, where."""

    every: int = attrs.field(default=100, validator=_at_least(0))
    """Steps between checkpoints; 0: only the last step, an interruption, a best evaluation and an anomaly."""
    keep: int = attrs.field(default=3, validator=_at_least(1))
    """How many of the newest are kept, beside the best one, those of anomalies and those of ``keep_every``."""
    keep_every: int = attrs.field(default=0, validator=_at_least(0))
    """Steps between checkpoints that are kept for good; 0: none."""
    backend: Choice
    """The checkpoint backend and its options."""


@attrs.frozen(kw_only=True)
class AlertConfig:
    """``[alerts]``: thresholds. A rate is a fraction of elements, 0 to 1, taken as the mean over layers."""

    nan_patience: int = attrs.field(default=10, validator=_at_least(1))
    """Steps in a row with a non-finite loss or gradient after which the run stops; the run's first one saves a checkpoint."""
    bit_stall: float = attrs.field(default=0.5, validator=_at_least(0))
    """Warn when the mean bit-stall rate is above this."""
    overflow: float = attrs.field(default=0.01, validator=_at_least(0))
    """Warn when the mean overflow rate is above this."""
    dead_neurons: float = attrs.field(default=0.5, validator=_at_least(0))
    """Warn when the mean dead-neuron fraction is above this."""
