"""Which backend multiplies a layer's operands, and why: what a recipe's ``backend`` says, made of the device at hand.

``emulated``  always possible.
``native``    FP8 units, or an ``AltgradError`` that says what is in the way. On the CPU torch has a stand-in for them: the
              same numbers as exact FP8 units would give, slower than BF16; it is there for tests, and to try a recipe.
``auto``      FP8 units where they are there and worth it, else emulated. Never on the CPU.

Worth it is a rule by the sizes of the layer, so that a run that is resumed, or made again, has the same arithmetic:
``worth_it``. A measurement takes the place of the rule: ``altgrad verify-native --json`` writes a table of what it
measured, and ``ALTGRAD_NATIVE_TABLE=FILE`` names one. Either way a decision is the same for the life of a layer on a
device.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.stored import storage_dtype
from altgrad_core.recipes.gemm import EmulatedGemms, LinearGemms
from altgrad_core.recipes.native import NativeGemm, NativeGemms
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OPERANDS, Backend
from altgrad_core.recipes.scaled_mm import ALIGNED, BLOCKS, FP8, Granularity, trial

TABLE = "ALTGRAD_NATIVE_TABLE"
GEMMS = {"fprop": ("input", "weight"), "dgrad": ("grad_output", "weight"), "wgrad": ("grad_output", "input")}


@attrs.frozen(kw_only=True)
class Decision:
    """What multiplies a layer's operands on its device."""

    backend: Literal["emulated", "native"]
    """The backend."""
    reason: str
    """Why that one, and what of it is not as its name says."""
    gemms: Mapping[str, NativeGemm] = attrs.field(factory=dict)
    """GEMM -> how the FP8 units do it; empty when emulated."""
    holders: Mapping[str, torch.dtype] = attrs.field(factory=dict)
    """Operand -> the dtype of its codes, for those that an FP8 GEMM reads."""
    only_bfloat16: bool = False
    """Whether the device rounds products to bfloat16 whatever the layer's output is."""

    def make(self, result: torch.dtype, wide: torch.dtype) -> LinearGemms:
        """Return the GEMMs for a layer whose output has the dtype ``result`` and whose values are multiplied in ``wide``."""
        if self.backend == "emulated" or result is torch.float64:
            return EmulatedGemms(wide)
        product = torch.bfloat16 if result is torch.bfloat16 or self.only_bfloat16 else torch.float32
        how = {f"{name}_how": self.gemms.get(name) for name in GEMMS}
        return NativeGemms(**how, holders=dict(self.holders), product=product, wide=wide)


def decide(
    casts: Mapping[str, Quantizer | None],
    weight: torch.Tensor,
    *,
    wish: Backend,
    fast: tuple[str, ...],
    keeps_values: str = "",
) -> Decision:
    """Return the decision for a layer with these quantizers (operand -> quantizer) and ``weight`` [O, I].

    ``wish`` is what the recipe says, ``fast`` the GEMMs with fast accumulation. ``keeps_values`` says why the layer needs
    the values and not codes, if it does. A weight on the meta device is planned for CUDA where it is there, else the CPU.

    Raises ``AltgradError`` where ``native`` is asked for and no GEMM of the layer can be.
    """
    if wish == "emulated":
        return Decision(backend="emulated", reason="the recipe says so")
    device = weight.device
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wish == "auto" and device.type == "cpu":
        return Decision(backend="emulated", reason="the CPU has no FP8 units")
    sides = {name: _side(cast) for name, cast in casts.items()}
    problem = keeps_values or ("the layer computes in float64" if weight.dtype is torch.float64 else "")
    found, problems, only_bfloat16 = _possible(sides, device, fast, problem)
    why = "; ".join(f"{said} ({', '.join(names)})" for said, names in _grouped(problems).items())
    if not found:
        if wish == "native":
            raise AltgradError(
                f'cannot be native on {device}: {why}. Give it backend = "auto" or "emulated", or a recipe that FP8 '
                "units have: e4m3fn with e4m3fn or e5m2, scaled by tensors or rows (docs/native.md). 'altgrad verify-native' "
                "says what this machine has."
            )
        return Decision(backend="emulated", reason=why)
    outputs, inputs = weight.shape
    said = "the recipe says so"
    if wish == "auto":
        kind = layer_granularity(casts)
        assert kind is not None  # or nothing would have been found
        worth, said = worth_it(inputs, outputs, kind, device_name(device))
        if not worth:
            return Decision(backend="emulated", reason=said)
    if device.type == "cpu":
        said += "; on the CPU a stand-in, slower than BF16"
    if why:
        said += f"; but by values: {why}"
    if inputs % ALIGNED or outputs % ALIGNED:
        odd = {"inputs": inputs % ALIGNED and inputs, "outputs": outputs % ALIGNED and outputs}
        padded = " and ".join(f"{number} {what}" for what, number in odd.items() if number)
        said += f"; {padded} are padded to a multiple of {ALIGNED}"
    if only_bfloat16:
        said += "; products are rounded to BF16, since the device gives no FP32 ones here"
    holders = {name: dtype for gemm in found for name in GEMMS[gemm] if (dtype := sides[name].dtype) is not None}
    return Decision(backend="native", reason=said, gemms=found, holders=holders, only_bfloat16=only_bfloat16)


@attrs.frozen
class _Side:
    """An operand as FP8 units see it."""

    kind: Granularity | None
    """What shares a scale, None where FP8 units have no name for it."""
    dtype: torch.dtype | None
    """Dtype of its codes, None where there is none."""
    problem: str
    """Why no FP8 GEMM reads it; empty when one may."""


def _side(cast: Quantizer | None) -> _Side:
    if cast is None:
        return _Side("tensorwise", None, "an operand is not cast")
    kind, dtype = granularity(cast), storage_dtype(cast.format)
    if dtype not in FP8:
        return _Side(kind, None, f"no FP8 unit has {cast.format.name}")
    if kind is None:
        scaling = cast.operand.scaling.kind
        return _Side(kind, dtype, f"no FP8 GEMM here has scaling '{scaling}', only by tensors, rows, 1x128 or 128x128")
    return _Side(kind, dtype, "")


def _possible(
    sides: Mapping[str, _Side], device: torch.device, fast: tuple[str, ...], problem: str
) -> tuple[dict[str, NativeGemm], dict[str, str], bool]:
    """Return GEMM -> how it is native, GEMM -> why it is not, and whether products come in bfloat16 only."""
    found: dict[str, NativeGemm] = {}
    problems: dict[str, str] = {}
    only_bfloat16 = False
    for gemm, (a, b) in ((gemm, (sides[left], sides[right])) for gemm, (left, right) in GEMMS.items()):
        said = problem or a.problem or b.problem
        if not said:
            assert a.kind is not None and b.kind is not None  # noqa: PT018
            assert a.dtype is not None and b.dtype is not None  # noqa: PT018
            quick = gemm in fast and a.kind not in BLOCKS
            tried = functools.partial(trial, device, a.kind, b.kind, a.dtype, b.dtype, fast=quick)
            said = tried(out=torch.bfloat16)
            if not said:
                found[gemm] = NativeGemm(left=a.kind, right=b.kind, fast=quick)
                only_bfloat16 |= bool(tried(out=torch.float32))
        if said:
            problems[gemm] = said
    # A factor is left to the product of values, and scales of rows and blocks cannot be.
    if problems and any(side.kind != "tensorwise" for side in sides.values()):
        found = {}
    return found, problems, only_bfloat16


def granularity(cast: Quantizer) -> Granularity | None:
    """Return what shares a scale in the operand, None for what FP8 units have no name for."""
    # Of two widths, since a block may be as wide as one of them and is no row for that.
    first, second = (cast.scaling.block(torch.empty(256, width, device="meta"), -1) for width in (384, 640))
    if (first, second) == ((1, 384), (1, 640)):
        return "rowwise"
    known: dict[Any, Granularity] = {None: "tensorwise", (1, 128): "1x128", (128, 128): "128x128"}
    return known.get(first) if first == second else None


def layer_granularity(casts: Mapping[str, Quantizer | None]) -> Granularity | None:
    """Return what the rule and the table go by: the first of the operands' that is not tensorwise, if there is one.

    None for what FP8 units have no name for, and where nothing is cast.
    """
    kinds = [granularity(cast) for cast in (casts.get(operand) for operand in OPERANDS) if cast is not None]
    return next((kind for kind in kinds if kind != "tensorwise"), "tensorwise" if kinds else None)


def worth_it(inputs: int, outputs: int, kind: Granularity, device: str) -> tuple[bool, str]:
    """Tell whether a layer's FP8 GEMMs are faster than its BF16 ones, and what says so: the table, or else the rule.

    The rule is that of torchao 0.18 (``_auto_filter_for_recipe``), from measurements on H100: tensorwise all but
    I <= 4096 with O <= 1024; rowwise, and here blocks too, all but O <= 2048, I <= 1024, and O <= 4096 with I <= 2048.
    It compares whole layers with BF16 ones that cast nothing; an emulated layer makes the casts in any case, so that the
    rule is on the careful side.
    """
    where = f"{inputs} inputs and {outputs} outputs"
    path = os.environ.get(TABLE)
    if path:
        measured = table(path).get((device, kind, inputs, outputs))
        if measured is not None:
            ratio = f"{measured:.2f} times as fast as emulated"
            return measured > 1.0, f"{where} are {ratio}, says {path}"
    small = inputs <= 4096 and outputs <= 1024
    if kind != "tensorwise":
        small = outputs <= 2048 or inputs <= 1024 or (outputs <= 4096 and inputs <= 2048)
    comparison = "too small for FP8 to be faster" if small else "large enough for FP8 to be faster"
    return not small, f"{where} are {comparison}, by rule"


@functools.cache
def table(path: str) -> dict[tuple[str, Granularity, int, int], float]:
    """Return (device, kind, inputs, outputs) -> speed of native layers in emulated ones, as ``verify-native`` wrote it.

    Of several numbers of samples the largest counts. Raises ``AltgradError`` for a file that is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = sorted(content["shapes"], key=lambda row: row["m"])
        return {
            (content["device_name"], row["granularity"], row["k"], row["n"]): float(row["speed"]["native_to_emulated"])
            for row in rows
            if row.get("speed")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AltgradError(
            f"{TABLE}={path} names no table of measurements ({type(error).__name__}: {error}); write one with "
            "'altgrad verify-native --json > FILE'."
        ) from error


def device_name(device: torch.device) -> str:
    """Return what the device calls itself; of a CPU only that it is one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _grouped(problems: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, problem in problems.items():
        grouped.setdefault(problem, []).append(name)
    return grouped
