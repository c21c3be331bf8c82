"""What a recipe says: which operand of which layer is cast to what. Data only; nothing here imports torch.

A linear layer y = x W^T has three GEMMs over three operands (N samples, I inputs, O outputs)::

    fprop   input [N, I]        @ weight^T [I, O]   -> output [N, O]
    dgrad   grad_output [N, O]  @ weight [O, I]     -> grad of input [N, I]
    wgrad   grad_output^T [O, N] @ input [N, I]     -> grad of weight [O, I]

Each operand is cast once and its cast values are used in both of its GEMMs.
"""

from __future__ import annotations

from typing import Literal

import attrs

from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.plugins import Choice

Compute = Literal["bf16", "fp32"]
Backend = Literal["auto", "emulated"]

OPERANDS = ("input", "weight", "grad_output")


@attrs.frozen(kw_only=True)
class OperandCast:
    """How one operand is cast."""

    format: str
    """Name of the number format."""
    scaling: Choice
    """How the decode scale is chosen."""
    rounding: Rounding = "nearest_even"
    """Rounding mode."""
    saturation: Saturation = "finite"
    """What becomes of values beyond the largest finite one: see ``altgrad_core.quantize``."""


@attrs.frozen(kw_only=True)
class Override:
    """Another recipe for the layers whose name matches; the first match wins."""

    match: str
    """Shell-style pattern (``*``, ``?``, ``[...]``) over the layer's full name, such as ``blocks.*.mlp.up`` or ``lm_head``."""
    recipe: Recipe
    """The recipe of the matching layers; its ``compute``, ``gradient`` and ``overrides`` are not used."""


@attrs.frozen(kw_only=True)
class Recipe:
    """Operand -> cast; an operand without a cast stays in the compute precision."""

    name: str
    """What the recipe is called in tables and reports."""
    input: OperandCast | None = None
    """Cast of each layer's input activations."""
    weight: OperandCast | None = None
    """Cast of each layer's weight."""
    grad_output: OperandCast | None = None
    """Cast of the gradient of each layer's output."""
    gradient: OperandCast | None = None
    """Cast of every parameter's gradient before the optimizer reads it."""
    compute: Compute = "bf16"
    """Precision of all that is not cast: ``bf16`` is autocast over FP32 weights, ``fp32`` is plain FP32."""
    backend: Backend = "auto"
    """``emulated``: cast values, high-precision GEMM. ``auto``: the best one available, which is ``emulated``."""
    overrides: tuple[Override, ...] = ()
    """Exceptions for some layers, first match wins."""

    def casts(self) -> dict[str, OperandCast]:
        """Return operand name -> cast, for the operands that are cast."""
        found = {name: getattr(self, name) for name in OPERANDS}
        return {name: cast for name, cast in found.items() if cast is not None}
