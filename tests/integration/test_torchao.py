"""Against torchao's float8 training on the CPU: same weights, same inputs, the casts and all three GEMMs."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad_core as altgrad

pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")

N, I, O = 128, 64, 96
POWER_OF_TWO = {"kind": "current", "power_of_two": True}
AS_IT_IS = {"kind": "current", "power_of_two": False}


@pytest.fixture(scope="module")
def float8() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import
        import torchao.float8
    return torchao.float8


def configuration(float8: ModuleType, name: str, emulate: bool) -> Any:
    if name == "rowwise":  # scales are powers of two there
        return dataclasses.replace(float8.Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)
    return float8.Float8LinearConfig(round_scales_to_power_of_2=name == "power of two", emulate=emulate)


OURS = {
    "power of two": {"base": "hybrid", "scaling": POWER_OF_TWO},
    "as it is": {"base": "hybrid", "scaling": AS_IT_IS},
    "rowwise": {"base": "e4m3fn", "scaling": "rowwise"},
}


def passes(layer: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, N // 4, I, dtype=dtype).requires_grad_()
    y = layer(x)
    y.backward((torch.randn(4, N // 4, O) * 1e-3).to(dtype))
    weight = next(parameter for parameter in layer.parameters() if parameter.dim() == 2)
    return {"output": y.detach(), "gradient of input": x.grad, "gradient of weight": weight.grad}


def both(
    float8: ModuleType, name: str, dtype: torch.dtype, backend: str, *, emulate: bool = False, bias: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    base = nn.Linear(I, O, bias=bias).to(dtype)
    ours, _ = altgrad.convert(copy.deepcopy(base), {**OURS[name], "backend": backend})
    theirs = nn.Sequential(copy.deepcopy(base))
    float8.convert_to_float8_training(theirs, config=configuration(float8, name, emulate))
    return passes(ours, dtype), passes(theirs, dtype)


@pytest.mark.parametrize("emulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["emulated", "native"])
@pytest.mark.parametrize("name", ["power of two", "rowwise"])
def test_under_powers_of_two_all_three_products_are_equal_bit_for_bit(
    float8: ModuleType, name: str, backend: str, dtype: torch.dtype, emulate: bool
) -> None:
    """Emulated or not, on either side: products of codes and powers of two leave nothing to round but the sums.

    With one exception: torchao's rowwise GEMM gives BF16, which it widens for a float32 layer. AltGrad asks for FP32
    where the device gives it, so that its numbers rounded to BF16 are torchao's.
    """
    ours, theirs = both(float8, name, dtype, backend, emulate=emulate)
    for what, mine in ours.items():
        rounded = name == "rowwise" and dtype is torch.float32 and not emulate
        assert torch.equal(mine.bfloat16().float() if rounded else mine, theirs[what]), what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_scales_as_they_are_native_is_equal_and_emulated_rounds_elsewhere(
    float8: ModuleType, dtype: torch.dtype
) -> None:
    """The same codes, scales and calls. An emulated product is multiplied by the mantissas of its scales afterwards,
    in FP32, and in BF16 was rounded before that; so it is a rounding off."""
    native, theirs = both(float8, "as it is", dtype, "native")
    emulated, _ = both(float8, "as it is", dtype, "emulated")
    for what, expected in theirs.items():
        if dtype is torch.float32:
            # torchao's decode scale is 1 / float32(448 / amax), AltGrad's float32(amax / 448): up to an ulp apart.
            torch.testing.assert_close(native[what], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        else:
            assert (native[what] == expected).double().mean() > 0.999
        relative = 2.0**-7 if dtype is torch.bfloat16 else 1e-6
        assert float((emulated[what] - expected).abs().max() / expected.abs().max()) < relative


def test_a_bias_is_added_before_the_product_is_rounded_where_torchao_adds_it_after(float8: ModuleType) -> None:
    ours, theirs = both(float8, "power of two", torch.bfloat16, "native", bias=True)
    product, _ = both(float8, "power of two", torch.bfloat16, "native")
    torch.manual_seed(0)
    bias = nn.Linear(I, O).bias.detach().bfloat16()
    assert torch.equal(theirs["output"], product["output"] + bias)
    assert not torch.equal(theirs["output"], ours["output"])
    assert (ours["output"] != theirs["output"]).double().mean() < 0.5
    for what in ("gradient of input", "gradient of weight"):
        assert torch.equal(ours[what], theirs[what])


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize("scaling", ["power of two", "as it is"])
@pytest.mark.parametrize("rowwise", [False, True])
def test_cast_operands(float8: ModuleType, fmt: str, scaling: str, rowwise: bool) -> None:
    """Bit for bit under powers of two. Else x meets float32(448 / amax) there and float32(1 / float32(amax / 448)) here,
    an ulp apart at most: an element within 2^-23 of the middle between two values may go to the other one."""
    from torchao.float8.config import ScalingGranularity
    from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
    from torchao.float8.float8_training_tensor import LinearMMConfig

    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 512)[:, None]
    x[3] = 0.0
    dtype, exact = getattr(torch, f"float8_{fmt}"), scaling == "power of two"
    theirs = hp_tensor_to_float8_dynamic(
        x, dtype, LinearMMConfig(), round_scales_to_power_of_2=exact, axiswise_dim=-1 if rowwise else None,
        scaling_granularity=ScalingGranularity.AXISWISE if rowwise else ScalingGranularity.TENSORWISE,
    )  # fmt: skip
    spec = {"base": fmt, "scaling": {"kind": "rowwise" if rowwise else "current", "power_of_two": exact}}
    layer, _ = altgrad.convert(nn.Linear(8, 8), spec)
    codes, scale, _ = layer.input_cast(x, dtype=dtype, statistics=False)
    mine, other = codes.view(torch.int8).int(), theirs._data.view(torch.int8).int()
    decode = 1.0 / theirs._scale
    if rowwise:  # a row of zeros has scale 1 here, and there 448 / 1e-12
        usable = x.abs().amax(dim=-1) > 0
        scale, decode = scale[usable], decode[usable]
    if exact:
        assert torch.equal(mine, other)
        assert torch.equal(scale, decode)
    else:
        differ = (mine - other).abs()
        assert differ.max() <= 1
        assert (differ > 0).double().mean() < 1e-5
        torch.testing.assert_close(scale, decode, rtol=2.0**-22, atol=0)
