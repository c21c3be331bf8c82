"""The options of a training: ``[train]``, ``[checkpoint]`` and ``[alerts]``. Data only; nothing here imports torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

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


Action = Literal["log", "checkpoint", "stop"]


def _fraction(_: Any, field: Any, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(
            f"expected a fraction from 0 to below 1 (0.5 is 50 %), got {value}; false switches the alert off"
        )


def _within_window(rule: Any, field: Any, value: int) -> None:
    if value > rule.window:
        raise ValueError(f"expected at most the window of {rule.window}, got {value}; give both")


@attrs.frozen(kw_only=True)
class NanRule:
    """When non-finite steps raise an alert."""

    plain: ClassVar[str] = "patience"

    patience: int = attrs.field(validator=_at_least(1))
    """Steps in a row with a loss or gradient norm that is NaN or infinite."""
    action: Action
    """``"log"``, ``"checkpoint"`` (the state is saved and kept for good) or ``"stop"`` (the run ends)."""


@attrs.frozen(kw_only=True)
class SpikeRule:
    """When a loss far above those before it raises an alert."""

    plain: ClassVar[str] = "threshold"

    threshold: float = attrs.field(default=10.0, validator=_above(0))
    """Robust deviations above the median: (loss - median) / (1.4826 MAD) of the losses before it."""
    patience: int = attrs.field(default=1, validator=_at_least(1))
    """Steps in a row beyond the threshold."""
    action: Action = "checkpoint"
    """``"log"``, ``"checkpoint"`` (the state is saved and kept for good) or ``"stop"`` (the run ends)."""
    window: int = attrs.field(default=100, validator=[_at_least(3), attrs.validators.le(10_000)])
    """Finite losses before the step that it is compared with; at most 10,000."""
    min_losses: int = attrs.field(default=20, validator=[_at_least(3), _within_window])
    """Finite losses that there must be before the first comparison."""


@attrs.frozen(kw_only=True)
class DivergenceRule:
    """When a loss that rises for long raises an alert."""

    plain: ClassVar[str] = "threshold"

    threshold: float = attrs.field(default=0.5, validator=_above(0))
    """Nats that the smoothed loss is above its lowest value so far."""
    patience: int = attrs.field(default=50, validator=_at_least(1))
    """Steps in a row beyond the threshold."""
    action: Action = "checkpoint"
    """``"log"``, ``"checkpoint"`` (the state is saved and kept for good) or ``"stop"`` (the run ends)."""
    window: int = attrs.field(default=25, validator=[_at_least(1), attrs.validators.le(10_000)])
    """The smoothed loss is the median of this many finite losses, the newest included; at most 10,000."""


@attrs.frozen(kw_only=True)
class RateRule:
    """When a rate, averaged over layers, raises an alert."""

    plain: ClassVar[str] = "threshold"

    threshold: float = attrs.field(validator=_fraction)
    """Fraction, from 0 to below 1, above which the mean over layers is too high."""
    patience: int = attrs.field(default=1, validator=_at_least(1))
    """Measurements in a row beyond the threshold."""
    action: Action = "log"
    """``"log"``, ``"checkpoint"`` (the state is saved and kept for good) or ``"stop"`` (the run ends)."""


@attrs.frozen(kw_only=True)
class CountRule:
    """When a number of elements, summed over layers, raises an alert."""

    plain: ClassVar[str] = "threshold"

    threshold: float = attrs.field(default=0.0, validator=_at_least(0))
    """Elements of a step above which there are too many."""
    patience: int = attrs.field(default=1, validator=_at_least(1))
    """Measurements in a row beyond the threshold."""
    action: Action = "checkpoint"
    """``"log"``, ``"checkpoint"`` (the state is saved and kept for good) or ``"stop"`` (the run ends)."""


Rule = NanRule | SpikeRule | DivergenceRule | CountRule | RateRule


@attrs.frozen(kw_only=True)
class AlertConfig:
    """``[alerts]``: what raises an alert, and what is done about it; None is an alert that is off."""

    nan: NanRule | None = NanRule(patience=1, action="checkpoint")
    """A loss or gradient norm that is not finite. The update is skipped, whatever is set here."""
    nan_patience: NanRule | None = NanRule(patience=10, action="stop")
    """The same for many steps in a row."""
    non_finite: CountRule | None = CountRule()
    """``nan_count`` and ``inf_count``: elements that a cast reads, and may clamp, so that the loss looks sound."""
    loss_spike: SpikeRule | None = SpikeRule()
    """A training loss far above those before it."""
    divergence: DivergenceRule | None = DivergenceRule()
    """A smoothed training loss that stays above its best."""
    bit_stall: RateRule | None = RateRule(threshold=0.5)
    """``bit_stall_rate``: weights that a step leaves as they are in the format."""
    overflow: RateRule | None = RateRule(threshold=0.01)
    """``overflow_rate``: elements that a cast clamps."""
    underflow: RateRule | None = RateRule(threshold=0.1)
    """``underflow_rate``: elements that a cast turns into zero."""
    dead_neurons: RateRule | None = RateRule(threshold=0.5)
    """``dead_neuron_window_frac``: neurons without a gradient in each of the last measurements."""

    @staticmethod
    def default(alert: str) -> Rule:
        """Return the rule of an alert that is not mentioned."""
        rule: Any = attrs.fields_dict(AlertConfig)[alert].default
        return cast(Rule, rule)


ALERTS = tuple(attrs.fields_dict(AlertConfig))
