"""What a recipe says: which operand of which layer is cast to what. Data only; nothing here imports torch.

A linear layer y = x W^T has three GEMMs over three operands (N samples, I inputs, O outputs)::

    fprop   input [N, I]        @ weight^T [I, O]   -> output [N, O]
    dgrad   grad_output [N, O]  @ weight [O, I]     -> grad of input [N, I]
    wgrad   grad_output^T [O, N] @ input [N, I]     -> grad of weight [O, I]

Each operand is cast once and its cast values are used in both of its GEMMs; where blocks lie along the dimension that a
GEMM sums over, once for each. Beyond the operands a recipe casts what a step leaves behind: see ``Recipe``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.numerics.foreign import is_gfloat
from altgrad_core.numerics.format import Format
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.plugins import Choice

Compute = Literal["bf16", "fp32"]
Backend = Literal["auto", "emulated", "native"]
GemmName = Literal["fprop", "dgrad", "wgrad"]

OPERANDS = ("input", "weight", "grad_output")
STATES = ("weight_storage", "optimizer_state", "saved_activations")
LINEAR = "linear"
"""The kind of layers that core converts itself; plugins register others."""


def refuse_format(value: Any) -> None:
    """Raise ``AltgradError`` for a format itself, where a recipe names one."""
    if isinstance(value, Format) or is_gfloat(value):
        raise AltgradError(
            f"A recipe names formats, so that run files and reports can; got the format '{value.name}' itself. Write the "
            "name of a known one, or register yours with a plugin (docs/plugins.md); quantize() takes it as it is."
        )


@attrs.frozen(kw_only=True)
class OperandCast:
    """How one operand is cast."""

    format: str = attrs.field(validator=lambda _, __, value: refuse_format(value))
    """Name of the number format."""
    scaling: Choice
    """How the decode scale is chosen."""
    rounding: Rounding = "nearest_even"
    """Rounding mode."""
    saturation: Saturation = "finite"
    """What becomes of values beyond the largest finite one: see ``altgrad_core.quantize``."""
    random_bits: int = attrs.field(default=32, validator=[attrs.validators.ge(1), attrs.validators.le(32)])
    """Random bits an element, 1 to 32; only with ``rounding = "stochastic"``."""


@attrs.frozen(kw_only=True)
class NamedCast:
    """The cast of one of the optimizer's tensors."""

    state: str
    """The tensor's name in the optimizer's state: ``exp_avg`` and ``exp_avg_sq`` of Adam, ``momentum_buffer`` of SGD."""
    cast: OperandCast
    """How it is cast."""


@attrs.frozen(kw_only=True)
class OptimizerStateCasts:
    """How the optimizer's tensors are cast: all alike, each in its own way, or some not at all."""

    every: OperandCast | None = None
    """Cast of every state tensor that is not named: those with the shape of their parameter."""
    named: tuple[NamedCast, ...] = ()
    """Casts of single tensors."""

    def of(self, state: str) -> OperandCast | None:
        """Return the cast of the tensor with this name, None when it is kept as it is."""
        return next((named.cast for named in self.named if named.state == state), self.every)

    def casts(self) -> dict[str, OperandCast]:
        """Return ``*`` -> the cast of every other tensor, and name -> cast."""
        rest = {} if self.every is None else {"*": self.every}
        return rest | {named.state: named.cast for named in self.named}


@attrs.frozen(kw_only=True)
class Override:
    """Another recipe for the layers that meet all its conditions; the first such override wins."""

    match: str = "*"
    """Shell-style pattern (``*``, ``?``, ``[...]``) over the layer's full name, such as ``blocks.*.mlp.up`` or ``lm_head``."""
    type: str = "*"
    """Shell-style pattern over the name of the layer's class: ``Linear``, ``Conv*``."""
    smaller_than: int | None = None
    """The layer has fewer parameters than this, biases and all."""
    larger_than: int | None = None
    """The layer has more parameters than this."""
    recipe: Recipe
    """The recipe of the matching layers: its operands and its ``weight_storage``, the rest is that of the model."""

    def matches(self, names: Iterable[str], type: str, parameters: int) -> bool:
        """Tell whether a layer is meant, which may have several names where it is shared."""
        return (
            any(fnmatch.fnmatchcase(name, self.match) for name in names)
            and fnmatch.fnmatchcase(type, self.type)
            and (self.smaller_than is None or parameters < self.smaller_than)
            and (self.larger_than is None or parameters > self.larger_than)
        )

    def conditions(self) -> dict[str, str | int]:
        """Return key -> value of what the override asks for."""
        found = {"match": self.match, "type": self.type}
        sizes = {"smaller_than": self.smaller_than, "larger_than": self.larger_than}
        asked: dict[str, str | int] = {key: value for key, value in found.items() if value != "*"}
        asked |= {key: value for key, value in sizes.items() if value is not None}
        return asked or {"match": "*"}

    def __str__(self) -> str:
        return conditions_text(self.conditions())


def conditions_text(conditions: Mapping[str, Any]) -> str:
    """Return what an override asks for in words: ``lm_head``, or ``blocks.*, type Conv*, smaller_than 1000``."""
    return ", ".join(str(value) if key == "match" else f"{key} {value}" for key, value in conditions.items())


def _gemms(_: Any, __: Any, value: tuple[str, ...]) -> None:
    for name in value:
        if name not in get_args(GemmName):
            raise AltgradError(unknown("GEMM", name, get_args(GemmName)))


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
    weight_storage: OperandCast | None = None
    """Cast of every matrix (weights of linear layers, embeddings) after each update: no other copy of it exists."""
    optimizer_state: OptimizerStateCasts | None = None
    """Cast of the optimizer's tensors after each update: one for all, or one for each name, as ``exp_avg``."""
    saved_activations: OperandCast | None = None
    """Cast of the activations that the forward pass keeps for the backward pass."""
    compute: Compute = "bf16"
    """Precision of all that is not cast: ``bf16`` is autocast over FP32 weights, ``fp32`` is plain FP32."""
    backend: Backend = "auto"
    """``emulated``: cast values, high-precision GEMM. ``native``: FP8 units, an error where there are none. ``auto``: FP8
    units where the device has them and the layer is large enough, else ``emulated``."""
    fast_accumulation: tuple[GemmName, ...] = attrs.field(default=("fprop",), validator=_gemms)
    """The native GEMMs (``fprop``, ``dgrad``, ``wgrad``) that sum up in the units' own registers; the others add to FP32
    sums as they go."""
    layers: tuple[str, ...] = (LINEAR,)
    """Kinds of layers whose operands are cast: ``linear``, and what plugins add."""
    overrides: tuple[Override, ...] = ()
    """Exceptions for some layers, first match wins."""

    def __attrs_post_init__(self) -> None:
        for key in (*OPERANDS, "gradient", *STATES):
            value = getattr(self, key)
            wanted = OptimizerStateCasts if key == "optimizer_state" else OperandCast
            if value is not None and not isinstance(value, wanted):
                refuse_format(value)
                raise AltgradError(
                    f"Recipe({key}=...) takes {wanted.__name__}, got {value!r:.60}; convert() also takes a table, such as "
                    f'{{"{key}": "e4m3fn"}}.'
                )

    def casts(self) -> dict[str, OperandCast]:
        """Return operand name -> cast, for the operands that are cast."""
        found = {name: getattr(self, name) for name in OPERANDS}
        return {name: cast for name, cast in found.items() if cast is not None}

    def step_casts(self) -> tuple[str, ...]:
        """Return which of ``gradient`` and ``STATES`` are cast, in some layers at least."""
        every = (self, *(override.recipe for override in self.overrides))
        return tuple(key for key in ("gradient", *STATES) if any(getattr(recipe, key) is not None for recipe in every))

    def all_casts(self) -> dict[str, OperandCast]:
        """Return key -> cast for everything that is cast: operands, ``gradient``, ``optimizer_state.exp_avg``, ..."""
        found = self.casts()
        for key in ("gradient", "weight_storage", "saved_activations"):
            cast = getattr(self, key)
            if cast is not None:
                found[key] = cast
        if self.optimizer_state is not None:
            for state, cast in self.optimizer_state.casts().items():
                found["optimizer_state" if state == "*" else f"optimizer_state.{state}"] = cast
        return found
