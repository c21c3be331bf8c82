"""``altgrad verify-native``: do native layers have the codes of emulated ones, sums within the bound, and what is faster.

Of each shape M x K x N (samples, inputs, outputs) a layer is made and cast as the recipe says. Its codes are compared, all
of them, with what ``encode`` makes of the same operands; a sample of each product with the exact one
(``altgrad_core.bench.accumulation``); the time of a forward and backward pass with that of an emulated layer and of a
BF16 one. Where the machine has no FP8 units the report says so, and what was checked in their place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.bench.accumulation import Sums, bits_like, bits_on, sums
from altgrad_core.bench.timing import interleaved, median, ratio
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.environment import environment
from altgrad_core.numerics.blockwise import expand
from altgrad_core.numerics.codes import encode
from altgrad_core.numerics.stored import storage_dtype
from altgrad_core.recipes.backend import device_name, layer_granularity
from altgrad_core.recipes.convert import convert
from altgrad_core.recipes.gemm import Operand
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.native import NativeGemms
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.recipes.resolve import resolve_recipe

SAMPLE = 32  # rows, and columns, of each product that are compared
BEYOND = 1e30  # what stands for NaN and Inf, which JSON has no numbers for


@attrs.frozen(kw_only=True)
class Shape:
    """The sizes of a linear layer at work."""

    m: int
    """Samples: the tokens of a micro-batch."""
    k: int
    """Inputs."""
    n: int
    """Outputs."""

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``4096x768x3072``; raises ``AltgradError`` for what is none."""
        parts = text.strip().lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            raise AltgradError(f"A shape is MxKxN (samples, inputs, outputs), such as 4096x768x3072; got '{text}'.")
        m, k, n = map(int, parts)
        return cls(m=m, k=k, n=n)


def verify(
    shapes: Sequence[Shape], recipe: str | dict[str, Any] | Recipe, device: torch.device, *, rounds: int = 10
) -> dict[str, Any]:
    """Return the report on ``shapes``, ready for JSON; ``rounds`` is 0 to measure no speed.

    Raises ``AltgradError`` for a recipe that casts no operand.
    """
    resolved = resolve_recipe(recipe)
    if not resolved.casts():
        raise AltgradError(
            f"The recipe '{resolved.name}' casts no operand; verify-native takes one that does, as hybrid."
        )
    rows = [verify_shape(shape, resolved, device, rounds=rounds) for shape in shapes]
    wrong = [row for row in rows if row["wrong"]]
    native = [row for row in rows if row["native"]]
    if wrong:
        verdict = (
            f'WRONG: {len(wrong)} of {len(rows)} shapes do not agree; train with backend = "emulated" and report this'
        )
    elif not native:
        compared = any(row["codes"]["checked"] for row in rows)
        casts = "and their codes are right" if compared else "so there was nothing to compare"
        verdict = f"No FP8 GEMM here for {resolved.name}: {rows[0]['reason']}. Layers are emulated, {casts}."
    elif device.type == "cpu":
        verdict = (
            "Native layers agree with emulated ones, on the CPU's stand-in for FP8 units: sums in FP32, and no speed to gain. "
            "What a GPU does, only a GPU can show."
        )
    else:
        verdict = (
            f"Native layers have the codes of emulated ones, and sums within the bound, in {len(native)} of {len(rows)} "
            "shapes."
        )
    return {
        "device": str(device), "device_name": device_name(device),
        "hardware": environment(device)["device_name"], "torch": torch.__version__, "cuda": torch.version.cuda,
        "recipe": resolved.name, "accumulation_bits": bits_on(device), "shapes": rows, "agrees": not wrong, "verdict": verdict,
    }  # fmt: skip


def verify_shape(shape: Shape, recipe: Recipe, device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Return what there is to say of one shape."""
    torch.manual_seed(0)
    base = nn.Linear(shape.k, shape.n, device=device)
    emulated = layer_of(base, attrs.evolve(recipe, backend="emulated"))
    try:
        native, reason = layer_of(base, attrs.evolve(recipe, backend="native")), ""
    except AltgradError as error:
        native, reason = None, str(error).partition(": ")[2].partition(". Give it")[0]
    result = torch.bfloat16 if recipe.compute == "bf16" else torch.float32
    x = torch.randn(shape.m, shape.k, device=device, dtype=result)
    g = torch.randn(shape.m, shape.n, device=device, dtype=result) * 2.0**-10
    row: dict[str, Any] = {
        "m": shape.m, "k": shape.k, "n": shape.n, "native": native is not None,
        "reason": reason if native is None else native.decision.reason, "granularity": layer_granularity(emulated.quantizers()),
    }  # fmt: skip
    row["codes"] = _codes(emulated if native is None else native, x, g)
    row["gemms"] = {} if native is None else _gemms(native, emulated, x, g, result)
    runs = {"bf16": base, "emulated": emulated, **({} if native is None else {"native": native})}
    row["speed"] = _speed(runs, x, g, device, rounds, result) if rounds else None
    off = [name for name, gemm in row["gemms"].items() if gemm["error_to_bound"] > 1]
    row["wrong"] = bool(row["codes"]["different"] or off)
    row["verdict"] = _verdict(row, off)
    return row


def layer_of(base: nn.Linear, recipe: Recipe) -> CastLinear:
    """Return a layer with the weights of ``base``, converted."""
    layer = nn.Linear(base.in_features, base.out_features, device=base.weight.device)
    layer.load_state_dict(base.state_dict())
    convert(layer, recipe)
    assert isinstance(layer, CastLinear)
    return layer


def _axes(layer: CastLinear, operand: str) -> tuple[int, ...]:
    return (-1, 0) if layer.casts_each(operand) else (-1,)


def _codes(layer: CastLinear, x: Tensor, g: Tensor) -> dict[str, int]:
    """Compare every code with ``encode``'s, of the same values under the same scales."""
    checked = different = 0
    tensors = {"input": x, "weight": layer.weight.detach(), "grad_output": g}
    for operand, tensor in tensors.items():
        quantizer = getattr(layer, f"{operand}_cast")
        holder = None if quantizer is None else storage_dtype(quantizer.format)
        if holder is None or quantizer.draws:
            continue
        for axis in _axes(layer, operand):
            codes, scale, _ = quantizer(tensor, dtype=holder, statistics=False, axis=axis)
            expected = encode(tensor, quantizer.format, scale=scale, block=quantizer.scaling.block(tensor, axis))
            checked += codes.numel()
            different += int((codes.view(torch.uint8).long() != expected).sum())
    return {"checked": checked, "different": different}


def _gemms(
    native: CastLinear, emulated: CastLinear, x: Tensor, g: Tensor, result: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Compare a sample of each native product with the exact one, and all of it with the emulated one.

    As the layer rounds it, and as FP32 where the device gives that, which shows more of the sum.
    """
    expected = {name: product for name, (product, _, _) in _products(emulated, x, g, result).items()}
    found: dict[str, dict[str, Any]] = {}
    for rounded in dict.fromkeys((result, torch.float32)):
        gemms = native.gemms(rounded)
        assert isinstance(gemms, NativeGemms)
        for name, (product, a, b) in _products(native, x, g, rounded).items():
            how = native.decision.gemms.get(name)
            if how is None:
                continue
            rows, columns = _spread(a.shape[0], a.device), _spread(b.shape[0], a.device)
            exact = sums(a[rows], b[columns], bits_on(a.device), fast=how.fast, result=gemms.product)
            sample = product.view(a.shape[0], -1)[rows][:, columns].to(gemms.product)
            error = _error_to_bound(sample, exact)
            if name not in found:
                other = expected[name].double()
                found[name] = {
                    "fast_accumulation": how.fast,
                    "error_to_bound": 0.0,
                    "fp32_error_to_bound": None,
                    "native_to_emulated": _finite(float((product.double() - other).norm() / other.norm())),
                }
            found[name]["error_to_bound"] = max(found[name]["error_to_bound"], error)
            if gemms.product is torch.float32:
                found[name]["fp32_error_to_bound"] = error
            if gemms.product is torch.float32 or "bits" not in found[name]:
                found[name]["bits"] = bits_like(sample, exact.exact, a[rows], b[columns], fast=how.fast)
    return found


def _error_to_bound(product: Tensor, exact: Sums) -> float:
    """Return the largest error as a part of its bound, 0 where both are 0; ``BEYOND`` for a product of NaN or Inf."""
    error = (product.double() - exact.exact).abs()
    ratio = torch.where(error == 0, 0.0, error / exact.bound)
    return _finite(float(ratio.nan_to_num(nan=BEYOND, posinf=BEYOND).max()))


def _finite(number: float) -> float:
    """Return the number, or ``BEYOND`` for what JSON has no number for."""
    return number if math.isfinite(number) else BEYOND


def _products(layer: CastLinear, x: Tensor, g: Tensor, result: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return GEMM -> its product, and the two operands as [R, K] and [C, K] in float64 (of a native layer)."""
    gemms = layer.gemms(result)
    tensors = {"input": x, "weight": layer.weight.detach(), "grad_output": g}
    cast = {
        (operand, axis): layer.cast_operand(operand, tensor, gemms.holder(operand), axis=axis)
        for operand, tensor in tensors.items()
        for axis in _axes(layer, operand)
    }

    def read(operand: str, axis: int) -> tuple[Operand, Tensor]:
        found = cast.get((operand, axis), cast[operand, -1])
        return found, _decoded(layer, operand, found, axis if (operand, axis) in cast else -1)

    (xi, x_rows), (xn, x_columns) = read("input", -1), read("input", 0)
    (wi, w_rows), (wo, w_columns) = read("weight", -1), read("weight", 0)
    (go, g_rows), (gn, g_columns) = read("grad_output", -1), read("grad_output", 0)
    return {
        "fprop": (gemms.fprop(xi, wi, None, result), x_rows, w_rows),
        "dgrad": (gemms.dgrad(go, wo, result), g_rows, w_columns.t()),
        "wgrad": (gemms.wgrad(gn, xn, result), g_columns.t(), x_columns.t()),
    }


def _decoded(layer: CastLinear, operand: str, cast: Operand, axis: int) -> Tensor:
    """Return the operand as the GEMM reads it, scale * code, in float64."""
    values, scale = cast.values.double(), cast.factor
    if scale is None:
        return values
    if scale.dim():
        scale = expand(scale, values.shape, getattr(layer, f"{operand}_cast").scaling.block(values, axis))
    return values * scale.double()


def _spread(size: int, device: torch.device) -> Tensor:
    """Return up to ``SAMPLE`` places from the first to the last."""
    return torch.linspace(0, size - 1, min(size, SAMPLE), device=device).long()


def _speed(
    layers: dict[str, nn.Linear], x: Tensor, g: Tensor, device: torch.device, rounds: int, result: torch.dtype
) -> dict[str, float]:
    """Measure a forward and backward pass of each layer, in turns."""

    def run(layer: nn.Linear) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=result is torch.bfloat16):
            y = layer(x)
        y.backward(g)
        layer.weight.grad = None
        x.grad = None

    x.requires_grad_()
    runs = {name: functools.partial(run, layer) for name, layer in layers.items()}
    times = interleaved(runs, device, rounds=rounds)
    speed = {f"{name}_ms": round(median(times, name), 4) for name in times}
    if "native" in times:
        speed |= {f"native_to_{name}": round(ratio(times, name, "native"), 3) for name in ("emulated", "bf16")}
    return speed


def _verdict(row: dict[str, Any], off: list[str]) -> str:
    different, checked = row["codes"]["different"], row["codes"]["checked"]
    if different:
        return f"{different:,} of {checked:,} codes differ from emulation"
    if off:
        return (
            f"{', '.join(off)} beyond the bound: {max(row['gemms'][name]['error_to_bound'] for name in off):.3g} times"
        )
    if not row["native"]:
        return (
            f"emulated ({row['reason']})"
            if checked
            else f"emulated ({row['reason']}); there are no FP8 codes to compare"
        )
    bits = [gemm["bits"] for gemm in row["gemms"].values() if gemm["bits"]]
    like = f" (as of {min(bits)} bits)" if bits else ""
    text = f"codes identical, sums within the bound{like}"
    if speed := row["speed"]:
        how = speed["native_to_emulated"]
        text += f"; {how:.2f} times as fast as emulated, {speed['native_to_bf16']:.2f} times as fast as BF16"
    return text
