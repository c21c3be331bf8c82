"""Linear layers under scales of rows and blocks: each GEMM multiplies operands that were cast for it alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.scaling import split
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.plugins import Choice
from altgrad_core.recipes.control import control_of
from altgrad_core.recipes.gemm import EmulatedGemms
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OperandCast

N, I, O = 50, 72, 40  # every dimension ends in a ragged block of 32 and of 16


def power_of_two(part: Tensor, largest: float) -> float:
    return 2.0 ** math.ceil(math.log2(part.abs().max().item() / largest))


def exact(part: Tensor, largest: float) -> float:
    return float(torch.tensor(part.abs().max().item() / largest, dtype=torch.float64).float())


def by_block(x: Tensor, rows: int, columns: int, element: str, scale_of: Callable[[Tensor], float]) -> Tensor:
    """Quantize block after block, each with its own scale: x [R, C] -> [R, C] in float64."""
    result = torch.empty_like(x, dtype=torch.float64)
    for r in range(0, x.shape[0], rows):
        for c in range(0, x.shape[1], columns):
            part = x[r : r + rows, c : c + columns]
            scale = scale_of(part)
            result[r : r + rows, c : c + columns] = quantize(part, element, scale=scale).double()
    return result


def along(x: Tensor, axis: int, element: str, size: int, scale_of: Callable[[Tensor], float]) -> Tensor:
    return by_block(x, *((1, size) if axis == -1 else (size, 1)), element, scale_of)


def nvfp4(x: Tensor, axis: int) -> Tensor:
    tensor_scale = float((x.abs().max().double() / 2688).float())

    def scale_of(part: Tensor) -> float:
        share = (part.abs().max().double() / 6).float().double() / tensor_scale
        return max(quantize(share.float(), "e4m3fn").item(), 2.0**-9) * tensor_scale

    return along(x, axis, "e2m1fn", 16, scale_of)


# recipe's scaling and format -> the operand [R, C] as a GEMM that sums over its axis reads it
CASES: dict[str, tuple[str, Any, Callable[[Tensor, int], Tensor]]] = {
    "mx": ("e4m3fn", "mx", lambda x, axis: along(x, axis, "e4m3fn", 32, lambda p: power_of_two(p, 448))),
    "mxfp4": ("mxfp4", None, lambda x, axis: along(x, axis, "e2m1fn", 32, lambda p: power_of_two(p, 6))),
    "mxint8": ("mxint8", None, lambda x, axis: along(x, axis, "int8", 32, lambda p: power_of_two(p, 127 / 64))),
    "mx of 8": (
        "e2m3fn",
        {"kind": "mx", "block": 8},
        lambda x, axis: along(x, axis, "e2m3fn", 8, lambda p: power_of_two(p, 7.5)),
    ),
    "rowwise": ("e4m3fn", "rowwise", lambda x, axis: along(x, axis, "e4m3fn", 999, lambda p: power_of_two(p, 448))),
    "1x32": (
        "e3m4",
        {"kind": "blockwise", "columns": 32},
        lambda x, axis: along(x, axis, "e3m4", 32, lambda p: power_of_two(p, 15.5)),
    ),
    "4x32": (
        "e3m4",
        {"kind": "blockwise", "rows": 4, "columns": 32},
        lambda x, axis: by_block(x, *((4, 32) if axis == -1 else (32, 4)), "e3m4", lambda p: power_of_two(p, 15.5)),
    ),
    "32x32": (
        "e4m3fn",
        {"kind": "blockwise", "rows": 32, "columns": 32},
        lambda x, axis: by_block(x, 32, 32, "e4m3fn", lambda p: power_of_two(p, 448)),
    ),
    "nvfp4": ("nvfp4", None, nvfp4),
    "rowwise exact": (
        "e4m3fn",
        {"kind": "rowwise", "power_of_two": False},
        lambda x, axis: along(x, axis, "e4m3fn", 999, lambda p: exact(p, 448)),
    ),
}
IN_BF16 = [name for name in CASES if name not in ("nvfp4", "rowwise exact")]


def recipe(name: str) -> dict[str, Any]:
    format, scaling, _ = CASES[name]
    return {"base": format} if scaling is None else {"base": format, "scaling": scaling}


def spread(rows: int, columns: int) -> Tensor:
    """Values whose size changes from block to block along either axis, by more than any element format spans."""
    sizes = torch.exp2(torch.linspace(-12, 12, rows))[:, None] * torch.exp2(torch.linspace(10, -10, columns))
    return torch.randn(rows, columns) * sizes


def pair(bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(I, O, bias=bias)
    layer.weight.data.copy_(spread(O, I))
    return layer, spread(N, I), spread(N, O) * 1e-3


def passes(layer: nn.Module, x: Tensor, g: Tensor, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = layer(x)
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad, layer.weight.grad


def product(mine: Tensor, a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether ``mine`` is the product of the matrices a and b, to rounding: by the size of what is summed up."""
    error = (mine.double().reshape(a.shape[0], b.shape[1]) - a @ b).abs()
    return bool((error <= tolerance * (a.abs() @ b.abs())).all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(N,), (2, N // 2), (5, 2, N // 10)])
def test_each_gemm_multiplies_operands_cast_for_it(name: str, shape: tuple[int, ...]) -> None:
    """In FP32: fprop sums over I, dgrad over O, wgrad over N."""
    layer, x, g = pair(bias=False)
    cast = CASES[name][2]
    xi, xn, wi, wo, go, gn = (cast(t, axis) for t in (x, layer.weight.detach(), g) for axis in (-1, 0))
    altgrad.convert(layer, recipe(name))
    y, dx, dw = passes(layer, x.view(*shape, I), g.view(*shape, O), bf16=False)
    assert y.dtype is dx.dtype is dw.dtype is torch.float32
    assert (y.shape, dx.shape) == ((*shape, O), (*shape, I))
    assert product(y, xi, wi.t())
    assert product(dx, go, wo)
    assert product(dw, gn.t(), xn)
    if name != "32x32":  # the other axis is another cast, and this test sees it
        assert not product(y, xn, wi.t())
        assert not product(dx, go, wi)
        assert not product(dw, gn.t(), xi)


@pytest.mark.parametrize("name", IN_BF16)
def test_powers_of_two_are_multiplied_in_bf16(name: str) -> None:
    layer, x, g = pair(bias=False)
    cast, bf16 = CASES[name][2], torch.bfloat16
    weight, g = layer.weight.detach(), g.to(bf16).float()
    xi, xn, wi, wo, go, gn = (
        cast(t, axis).to(bf16) for t, axis in ((x, -1), (x, 0), (weight, -1), (weight, 0), (g, -1), (g, 0))
    )
    altgrad.convert(layer, recipe(name))
    assert layer.gemms(bf16) == EmulatedGemms(bf16)
    y, dx, dw = passes(layer, x, g, bf16=True)
    assert torch.equal(y, F.linear(xi, wi))
    assert torch.equal(dx, (go @ wo).float())
    assert torch.equal(dw, (gn.t() @ xn).float())


def test_nvfp4_multiplies_in_bf16_and_its_product_by_what_is_left_of_the_tensor_scales() -> None:
    layer, x, _ = pair(bias=False)
    weight = layer.weight.detach()
    altgrad.convert(layer, "nvfp4")
    assert layer.gemms(torch.bfloat16) == EmulatedGemms(torch.bfloat16)
    values = []
    for t, quantizer in ((x, layer.input_cast), (weight, layer.weight_cast)):
        q, factor, _ = quantizer(t, dtype=torch.float64, statistics=False)
        assert torch.equal(q.bfloat16().double(), q)
        assert torch.equal(factor, split((t.abs().max().double() / 2688).float())[1])
        assert torch.allclose(q.double() * factor, nvfp4(t, -1), rtol=1e-6)
        values.append((q, factor))
    (xq, xf), (wq, wf) = values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, (F.linear(xq.bfloat16(), wq.bfloat16()).float() * xf * wf).bfloat16())


@pytest.mark.parametrize("name", ["rowwise exact"])
def test_other_scales_of_blocks_are_multiplied_in_fp32(name: str) -> None:
    layer, x, g = pair(bias=False)
    cast = CASES[name][2]
    altgrad.convert(layer, recipe(name))
    assert layer.gemms(torch.bfloat16) == EmulatedGemms(torch.float32)
    got = passes(layer, x, g, bf16=True)[0]
    assert got.dtype is torch.bfloat16
    assert product(got, cast(x, -1), cast(layer.weight.detach(), -1).t(), 2**-8)


def casts_made(layer: CastLinear) -> list[tuple[str, int]]:
    made: list[tuple[str, int]] = []
    for operand in ("input", "weight", "grad_output"):
        quantizer = getattr(layer, f"{operand}_cast")
        quantizer.register_forward_hook(
            lambda module, args, kwargs, output, operand=operand: made.append((operand, kwargs["axis"])),
            with_kwargs=True,
        )
    return made


def test_no_cast_is_made_that_no_gemm_needs() -> None:
    forward = [("input", -1), ("weight", -1)]
    whole = {
        "current": [("grad_output", -1)],
        "mx": [("grad_output", -1), ("weight", 0), ("grad_output", 0), ("input", 0)],
    }
    for scaling, backward in whole.items():
        layer, x, g = pair()
        altgrad.convert(layer, {"base": "e4m3fn", "scaling": scaling})
        made = casts_made(layer)
        passes(layer, x, g, bf16=False)
        assert made == forward + backward
    layer, x, g = pair()
    altgrad.convert(layer, {"base": "e4m3fn", "scaling": "mx"})
    made = casts_made(layer)
    layer(x).backward(g)  # no gradient of x is asked for
    assert made == [*forward, ("grad_output", 0), ("input", 0)]
    layer.weight.requires_grad_(False)
    made.clear()
    layer(x.clone().requires_grad_()).backward(g)
    assert made == [*forward, ("grad_output", -1), ("weight", 0)]


@pytest.mark.parametrize("scaling", ["current", "mx"])
@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_count_each_element_once(scaling: str, frozen: bool) -> None:
    layer, x, g = pair()
    altgrad.convert(layer, {"base": "e4m3fn", "scaling": scaling})
    control = control_of(layer)
    control.collecting = True
    layer(x.clone().requires_grad_(not frozen)).backward(g)
    elements = {key: vector[0].item() for key, vector in control.take().items()}
    assert elements == {".input": N * I, ".weight": I * O, ".grad_output": N * O}


def test_directional_layers_keep_the_input_itself() -> None:
    """Nothing more than a plain linear layer keeps, and changing it in place before the backward is an error there too."""
    layer, x, g = pair()
    altgrad.convert(layer, {"base": "e4m3fn", "scaling": "mx"})
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        layer(x)
    assert kept == [x.data_ptr(), layer.weight.data_ptr()]
    y = layer(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(g)


@pytest.mark.parametrize("scaling", ["current", "mx", "nvfp4", "rowwise", "blockwise"])
def test_stochastic_rounding_draws_anew_for_everything(scaling: str) -> None:
    """Another layer, operand, axis, micro-batch, step or seed; and the same once more when it is run again."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    altgrad.convert(model, {"base": "e2m1fn", "scaling": scaling, "rounding": "stochastic"})
    control = control_of(model)
    drawn: list[Draw] = []
    draw = control.draw
    control.draw = lambda key: drawn.append(draw(key)) or drawn[-1]
    x = torch.randn(4, 16)

    def steps() -> list[Tensor]:
        results = []
        for step in (1, 2):
            control.begin_step(step)
            model.zero_grad()
            for _ in range(2):
                y = model(x.clone().requires_grad_())
                y.sum().backward()
                results += [y.detach(), model[0].weight.grad.clone()]
        return results

    first = steps()
    casts = 3 if scaling == "current" else 6
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 2 * casts
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[4])
    assert all(torch.equal(a, b) for a, b in zip(first, steps(), strict=True))
    control.seed = 7
    assert not torch.equal(first[0], steps()[0])


def test_stochastic_rounding_uses_the_draw_and_the_number_of_bits() -> None:
    layer, x, _ = pair(bias=False)
    altgrad.convert(
        layer,
        {"input": {"format": "e4m3fn", "rounding": "stochastic", "random_bits": 5}, "scaling": "none"},
    )
    control_of(layer).seed = 3
    control_of(layer).begin_step(9)
    xq = quantize(x, "e4m3fn", rounding="stochastic", draw=Draw(seed=3, step=9, name=".input#0"), random_bits=5)
    assert torch.equal(layer(x), F.linear(xq, layer.weight))


def test_a_block_format_takes_its_own_scaling_only() -> None:
    options = {kind: altgrad.plugins.installed().get("scaling", kind).options for kind in ("mx", "nvfp4", "current")}
    for format, own, wrong in (("mxfp4", "mx", "current"), ("mxfp4", "mx", "nvfp4"), ("nvfp4", "nvfp4", "mx")):
        Quantizer(OperandCast(format=format, scaling=Choice(own, options[own]())))
        with pytest.raises(AltgradError, match=f"scaling '{own}'; got scaling '{wrong}'"):
            Quantizer(OperandCast(format=format, scaling=Choice(wrong, options[wrong]())))
    with pytest.raises(AltgradError, match=r"A block of 'mxfp4' has 32 elements, got scaling with block = 16"):
        Quantizer(OperandCast(format="mxfp4", scaling=Choice("mx", options["mx"](block=16))))


@pytest.mark.parametrize("name", CASES)
def test_empty_batches(name: str) -> None:
    layer, x, _ = pair()
    altgrad.convert(layer, recipe(name))
    y, dx, dw = passes(layer, x[:0], torch.zeros(0, O), bf16=False)
    assert y.shape == (0, O)
    assert dx.shape == (0, I)
    assert torch.equal(dw, torch.zeros(O, I))
