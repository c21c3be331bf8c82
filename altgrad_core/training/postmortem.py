"""Where a step went wrong: runs its forward and backward once more, watched, and names the first place in order.

What is looked at, in the order in which it is computed: the weights; of each module the output, on the way forward, and
the gradient of that output, on the way back; every cast of an operand, by its own statistics; the loss; the gradients of
the parameters. Two things are looked for: a number that is not finite, and a finite number that the cast clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.numerics.statistics import CastStatistics, combine
from altgrad_core.recipes.control import CastControl

Kind = Literal["non-finite", "saturation"]
Phase = Literal["weights", "forward", "backward", "gradients"]


@attrs.frozen(kw_only=True)
class Place:
    """The first place at which something was found."""

    kind: Kind
    """``non-finite``: NaN or infinity; ``saturation``: finite elements beyond the largest value of a format."""
    phase: Phase
    """``weights`` (before anything was computed), ``forward``, ``backward`` or ``gradients`` (of the parameters)."""
    where: str
    """``blocks.0.mlp.up.input`` for a cast operand, else the name of a module or parameter; ``loss``."""
    what: str
    """In words: ``output: 3 of 4,096 elements are NaN or infinite``."""

    def __str__(self) -> str:
        return f"{self.phase}, {self.where}: {self.what}"


@attrs.frozen(kw_only=True)
class Findings:
    """What the second look at a step found."""

    first: tuple[Place, ...]
    """The first place of each kind, at most two."""
    casts: dict[str, CastStatistics]
    """Statistics of every cast of the step, by ``layer.operand``."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types, but for non-finite floats."""
        return {
            "first": [attrs.asdict(place) for place in self.first],
            "casts": {name: attrs.asdict(statistics) for name, statistics in self.casts.items()},
        }


def examine(model: nn.Module, control: CastControl, backward: Callable[[], Tensor]) -> Findings:
    """Call ``backward``, which computes the step's loss (0-d) and gradients, and return what it meets.

    The caller puts back what the pass changes: gradients, generators and scaling state. One transfer from the device.
    """
    journal = _Journal()
    for name, parameter in model.named_parameters():
        journal.finite("weights", name, "", parameter)
    with _watched(model, control, journal):
        loss = backward()
    journal.finite("forward", "loss", "", loss)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            journal.finite("gradients", name, "", parameter.grad)
    return journal.read()


@attrs.define
class _Journal:
    """What was seen, in order; on the device until ``read``."""

    entries: list[tuple[Phase, str, str, int]] = attrs.field(factory=list)
    counts: list[Tensor] = attrs.field(factory=list)  # [1] of bad elements, or a cast's statistics vector
    phase: Phase = "forward"

    def finite(self, phase: Phase, where: str, what: str, x: Tensor) -> None:
        if x.is_floating_point():
            self.entries.append((phase, where, what, x.numel()))
            self.counts.append((~torch.isfinite(x.detach())).sum().double().reshape(1))

    def cast(self, key: str, statistics: Tensor) -> None:
        self.entries.append((self.phase, key, "cast", 0))
        self.counts.append(statistics.detach().double())

    def read(self) -> Findings:
        sizes = [len(counts) for counts in self.counts]
        flat = torch.cat(self.counts).tolist() if self.counts else []
        first: dict[Kind, Place] = {}
        vectors: dict[str, list[list[float]]] = {}
        at = 0
        for (phase, where, what, elements), size in zip(self.entries, sizes, strict=True):
            values = flat[at : at + size]
            at += size
            if what != "cast":
                if values[0]:
                    text = f"{values[0]:,.0f} of {elements:,} elements are NaN or infinite"
                    _keep(first, "non-finite", phase, where, f"{what}: {text}" if what else text)
                continue
            seen = CastStatistics.from_values(values)
            vectors.setdefault(where, []).append(values)
            if seen.nan or seen.inf:
                text = (
                    f"{seen.nan:,.0f} NaN and {seen.inf:,.0f} infinite of {seen.elements:,.0f} elements before the cast"
                )
                _keep(first, "non-finite", phase, where, text)
            if seen.overflow:
                text = (
                    f"{seen.overflow:,.0f} of {seen.elements:,.0f} elements clamped, largest magnitude {seen.amax:.4g}"
                )
                _keep(first, "saturation", phase, where, text)
        casts = {
            where: CastStatistics.from_values(combine(torch.tensor(rows, dtype=torch.float64)).tolist())
            for where, rows in vectors.items()
        }
        return Findings(first=tuple(first.values()), casts=casts)


def _keep(first: dict[Kind, Place], kind: Kind, phase: Phase, where: str, what: str) -> None:
    first.setdefault(kind, Place(kind=kind, phase=phase, where=where, what=what))


@contextmanager
def _watched(model: nn.Module, control: CastControl, journal: _Journal) -> Iterator[None]:
    """Have every module and every cast tell the journal what it computes."""

    def before_forward(module: nn.Module, inputs: Any) -> None:
        journal.phase = "forward"  # also of the next micro-batch

    def after_forward(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple | list) else (output,):
                if isinstance(tensor, Tensor):
                    journal.finite("forward", name, "output", tensor)
                    if tensor.requires_grad:
                        tensor.register_hook(on_the_way_back(name))  # type: ignore[no-untyped-call]

        return hook

    def on_the_way_back(name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            journal.phase = "backward"
            journal.finite("backward", name, "gradient of the output", gradient)

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before_forward))
        handles.append(module.register_forward_hook(after_forward(name or "model")))
    before = control.collecting
    control.take()
    control.collecting, control.listener = True, journal.cast
    try:
        yield
    finally:
        control.collecting, control.listener = before, None
        control.take()
        for handle in handles:
            handle.remove()
