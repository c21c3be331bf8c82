"""Native GEMMs on a CUDA device: codes, sums, limits, decisions. Skipped, with the reason, where there is none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad_core as altgrad
from altgrad_core.bench.accumulation import HOPPER_BITS, sums
from altgrad_core.bench.verify_native import Shape, verify
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.stored import cast_stored
from altgrad_core.recipes.control import control_of
from altgrad_core.recipes.scaled_mm import FP8, decoded, scaled_mm, trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

E4M3, E5M2 = FP8
PAIRS = [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)]
SPECS: dict[str, Any] = {
    "hybrid": {"base": "hybrid"},
    "delayed": {"base": "hybrid", "scaling": "delayed"},
    "not a power of two": {"base": "hybrid", "scaling": {"kind": "current", "power_of_two": False}},
    "rowwise": {"base": "e4m3fn", "scaling": "rowwise"},
}


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.device("cuda")
    if problem := trial(found, "tensorwise", "tensorwise", E4M3, E4M3, torch.bfloat16, fast=False):
        pytest.skip(f"the device has no FP8 units: {problem}")
    return found


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2"])
def test_codes_are_those_of_the_cpu(device: torch.device, fmt: str) -> None:
    """With statistics and without, which are two ways on CUDA, for all of BF16 and many FP32 numbers."""
    format = get_format(fmt)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    some = (
        torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    )
    for x, power in itertools.product((every, some), (-30, 0, 7)):
        scale = torch.tensor(1.37 * 2.0**power)
        expected, counted = cast(x, format, scale=scale, statistics=True)
        for statistics in (False, True):
            codes, there = cast_stored(x.to(device), format, scale=scale.to(device), statistics=statistics)
            assert torch.equal(codes.cpu().float().nan_to_num(-1.0), expected.float().nan_to_num(-1.0))
        assert counted is not None
        assert there is not None
        assert torch.equal(counted[:6], there.cpu()[:6])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pair", PAIRS)
def test_products_are_within_the_bound(device: torch.device, pair: Any, out: torch.dtype, fast: bool) -> None:
    torch.manual_seed(0)
    for m, k, n in ((64, 4096, 48), (33, 1000, 70)):  # the second is padded
        a, b = torch.randn(m, k).to(pair[0]), torch.randn(n, k).to(pair[1])
        a_scale, b_scale = torch.tensor(0.3), torch.tensor(1.7)
        got = scaled_mm(
            a.to(device),
            b.to(device),
            a_scale.to(device),
            b_scale.to(device),
            "tensorwise",
            "tensorwise",
            out=out,
            fast=fast,
        ).cpu()
        wide = decoded(a, a_scale, "tensorwise"), decoded(b, b_scale, "tensorwise")
        found = sums(*wide, HOPPER_BITS, fast=fast, result=out)
        assert bool(((got.double() - found.exact).abs() <= found.bound).all())


def test_cuda_refuses_what_altgrad_refuses_for_it(device: torch.device) -> None:
    """The limits that AltGrad asserts on every device are CUDA's own; where one has fallen, the assertion may go."""
    one = torch.tensor(1.0, device=device)

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    def codes(rows: int, columns: int, dtype: torch.dtype = E4M3) -> Tensor:
        return torch.randn(rows, columns, device=device).to(dtype)

    multiply(codes(32, 64), codes(48, 64).t())
    for a, b in (
        (codes(32, 64, E5M2), codes(48, 64, E5M2).t()),  # e5m2 x e5m2
        (codes(32, 60), codes(48, 60).t()),  # K
        (codes(32, 64), codes(47, 64).t()),  # N
        (codes(32, 64), codes(64, 48)),  # the right operand row-major
    ):
        with pytest.raises((RuntimeError, ValueError)):
            multiply(a, b)


def passes(device: torch.device, spec: Any, backend: str, bf16: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(520, 1000).to(device)
    altgrad.convert(layer, {**spec, "backend": backend})
    control = control_of(layer)
    assert control is not None
    control.collecting = True
    x = torch.randn(4, 77, 520, device=device, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        y = layer(x)
    y.backward(torch.randn(y.shape, device=device).to(y.dtype) * 1e-3)
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad, *control.take().values()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_native_layer_gives_the_numbers_of_an_emulated_one(device: torch.device, name: str, bf16: bool) -> None:
    if name == "rowwise" and (why := trial(device, "rowwise", "rowwise", E4M3, E4M3, torch.bfloat16, fast=True)):
        pytest.skip(f"no rowwise GEMM: {why}")
    emulated, native = (passes(device, SPECS[name], backend, bf16) for backend in ("emulated", "native"))
    for a, b in zip(emulated[:3], native[:3], strict=True):
        assert a.dtype is b.dtype
        assert float((a.double() - b.double()).norm() / a.double().norm()) < 2.0**-7
    assert torch.equal(emulated[3], native[3])
    for a, b in zip(emulated[4:], native[4:], strict=True):
        assert torch.equal(a, b)  # the statistics, of the same operands


@pytest.mark.parametrize("recipe", ["hybrid", "e4m3fn", "deepseek-v3", {"base": "e4m3fn", "scaling": "rowwise"}])
def test_verify_native_agrees(device: torch.device, recipe: Any) -> None:
    report = verify([Shape(m=1000, k=768, n=2304), Shape(m=512, k=256, n=250)], recipe, device, rounds=0)
    assert report["agrees"], report["verdict"]
    if recipe != "deepseek-v3":
        assert all(row["native"] for row in report["shapes"]), report["verdict"]


def test_auto_goes_by_the_rule(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 3072)).to(device)
    _, summary = altgrad.convert(model, "hybrid")
    assert [layer.backend for layer in summary.layers] == ["emulated", "native"]
    assert all(layer.backend_reason.endswith("by rule") for layer in summary.layers)


def test_a_layer_that_moves_to_the_device_goes_native_there(device: torch.device) -> None:
    layer, _ = altgrad.convert(nn.Linear(768, 3072), "hybrid")
    assert layer.decision.backend == "emulated"
    assert layer.to(device).decision.backend == "native"
    with pytest.raises(AltgradError, match="e5m2 x e5m2"):
        altgrad.convert(nn.Linear(768, 3072).to(device), {"base": "e5m2", "backend": "native"})
