"""Native GEMMs on the stand-in that torch has on the CPU: the codes, the products, the limits, the decisions."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.codes import encode
from altgrad_core.numerics.stored import cast_stored, converted, storage_dtype
from altgrad_core.recipes import backend as backends
from altgrad_core.recipes.backend import TABLE, Decision, granularity, layer_granularity, table, worth_it
from altgrad_core.recipes.control import control_of
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.scaled_mm import FP8, decoded, pair_problem, scaled_mm, trial

E4M3, E5M2 = FP8
CPU = torch.device("cpu")
N, I, O = 21, 72, 40  # none is a multiple of 16

RECIPES: dict[str, dict[str, Any]] = {
    "hybrid": {"base": "hybrid"},
    "e4m3fn": {"base": "e4m3fn"},
    "delayed": {"base": "hybrid", "scaling": {"kind": "delayed", "history": 2}},
    "static": {"base": "hybrid", "scaling": {"kind": "static", "scale": 0.25}},
    "rowwise": {"base": "e4m3fn", "scaling": "rowwise"},
    "rowwise weight": {"base": "hybrid", "weight": {"scaling": "rowwise"}},
    "e5m2 x e5m2": {"input": "e5m2", "weight": "e4m3fn", "grad_output": "e5m2"},
    "gradient in BF16": {"input": "e4m3fn", "weight": "e4m3fn"},
    "gradient in e3m4": {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e3m4"},
    "stochastic": {"base": "hybrid", "rounding": "stochastic"},
}  # fmt: skip


def trained(spec: dict[str, Any], backend: str, bf16: bool, steps: int = 3) -> list[Tensor]:
    """Outputs, gradients and statistics of some steps of a layer, with a padded shape and a leading dimension."""
    torch.manual_seed(0)
    layer = nn.Linear(I, O)
    altgrad.convert(layer, {**spec, "backend": backend})
    control = control_of(layer)
    control.collecting = True
    found = []
    for step in range(steps):
        control.begin_step(step)
        x = (torch.randn(3, N // 3, I) * 2.0**step).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = layer(x)
        y.backward((torch.randn(3, N // 3, O) * 1e-3).to(y.dtype))
        found += [y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]
        found += list(control.take().values())
        with torch.no_grad():
            layer.weight -= layer.weight.grad
    return found


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_native_layer_gives_the_numbers_of_an_emulated_one(name: str, bf16: bool) -> None:
    """Scales are powers of two and sums are short, so that the stand-in's products in FP32 leave nothing to round.

    The statistics are those of the same operands, to the last bit; delayed scaling sees the same history.
    """
    emulated, native = (trained(RECIPES[name], backend, bf16) for backend in ("emulated", "native"))
    counted = [(a, b) for a, b in zip(emulated[:7], native[:7], strict=True) if a.dtype is torch.float64]
    assert len(counted) >= 2  # of the first step, where the weights are the same
    assert all(torch.equal(a, b) for a, b in counted)
    for a, b in zip(emulated, native, strict=True):
        assert a.dtype is b.dtype
        if a.dtype is torch.bfloat16 or bf16:
            # Sums of products in another order; one bit of BF16 in elements that lie between two values.
            assert (a.double() - b.double()).abs().max() <= 2.0**-8 * a.double().abs().max()
            assert (a == b).double().mean() > 0.99
        else:
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6 * float(a.abs().max()))


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_backward_pass_keeps_of_a_tensor_with_one_scale_is_a_byte_an_element(name: str) -> None:
    layer = nn.Linear(I, O)
    altgrad.convert(layer, {**RECIPES[name], "backend": "native"})
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(N, I, requires_grad=True))
    sizes = {tuple(t.shape): t.element_size() for t in kept if t.dim() == 2 and t.numel() >= N * I}
    by_rows = "rowwise" in name
    assert sizes[N, I] == (4 if name == "rowwise" else 1)
    assert sizes[O, I] == (4 if by_rows else 1)


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2"])
def test_torchs_conversion_gives_the_codes_of_the_cast(fmt: str) -> None:
    """What an accelerator does where no statistics are asked for, for all of BF16 and many of FP32, NaN and Inf too."""
    format = get_format(fmt)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    some = (
        torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    )
    for x, power in itertools.product((every, some), (-30, 0, 7)):
        scale = torch.tensor(1.37 * 2.0**power)
        expected, _ = cast(x, format, scale=scale)
        codes = converted(x, format, scale, None)
        assert torch.equal(codes.float().nan_to_num(nan=-1.0), expected.float().nan_to_num(nan=-1.0))
        assert torch.equal(codes.view(torch.uint8)[~x.isnan()].long(), encode(x, format, scale=scale)[~x.isnan()])
        assert bool(codes.float()[x.isnan()].isnan().all())


def test_codes_in_blocks_and_statistics_are_those_of_the_cast() -> None:
    x, format = torch.randn(10, 300) * torch.logspace(-3, 3, 10)[:, None], get_format("e4m3fn")
    scale = torch.exp2(torch.randint(-3, 4, (10, 3)).float())
    values, counted = cast(x, format, scale=scale, block=(1, 128), statistics=True)
    codes, counted_too = cast_stored(x, format, scale=scale, block=(1, 128), statistics=True)
    assert torch.equal(codes.float(), values.float())
    assert torch.equal(counted, counted_too)
    assert torch.equal(converted(x, format, scale, (1, 128)).float(), values.float())


def test_only_formats_with_an_8_bit_dtype_of_torch_are_stored() -> None:
    assert storage_dtype(get_format("e4m3fn")) is E4M3
    assert storage_dtype(get_format("e5m2")) is E5M2
    assert [storage_dtype(get_format(name)) for name in ("e3m4", "bf16", "fp32", "e4m3", "posit8")] == [None] * 5


# --- scaled_mm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("a_dtype", "b_dtype"), [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)])
@pytest.mark.parametrize(("a_kind", "b_kind"), list(itertools.product(["tensorwise", "rowwise"], repeat=2)))
def test_products_padded_or_not(a_kind: str, b_kind: str, a_dtype: Any, b_dtype: Any, out: torch.dtype) -> None:
    torch.manual_seed(0)
    for m, k, n in ((16, 32, 48), (5, 7, 9), (1, 1, 1), (0, 16, 16), (3, 0, 4)):
        a, b, bias = torch.randn(m, k).to(a_dtype), torch.randn(n, k).to(b_dtype), torch.randn(n).bfloat16()
        a_scale, b_scale = (torch.rand((rows, 1) if kind == "rowwise" else ()) + 0.5
                            for rows, kind in ((m, a_kind), (n, b_kind)))  # fmt: skip
        exact = decoded(a, a_scale, a_kind) @ decoded(b, b_scale, b_kind).t() + bias.double()
        got = scaled_mm(a, b, a_scale, b_scale, a_kind, b_kind, out=out, bias=bias, fast=True)
        assert got.dtype is out
        assert got.shape == (m, n)
        torch.testing.assert_close(got.double(), exact, rtol=2.0**-8 if out is torch.bfloat16 else 1e-5, atol=1e-4)


def test_what_cuda_refuses_is_refused_on_every_device() -> None:
    a, b, one = torch.zeros(16, 32).to(E4M3), torch.zeros(48, 32).to(E4M3), torch.tensor(1.0)

    def refused(
        match: str, a: Tensor = a, b: Tensor = b, s: Tensor = one, kinds: Any = ("tensorwise",) * 2, **how: Any
    ) -> None:
        with pytest.raises(AltgradError, match=match):
            scaled_mm(a, b, s, one, *kinds, **{"out": torch.bfloat16, **how})

    refused("e5m2 x e5m2", a.to(torch.float32).to(E5M2), b.to(torch.float32).to(E5M2))
    refused(r"rows of a .* strides \(1, 16\)", a.t().contiguous().t())
    refused(r"rows of b ", b=b.t().contiguous().t())
    refused(r"\[M, K\] and b \[N, K\], got shapes \[16, 32\] and \[32, 48\]", b=b.t().contiguous())
    refused("gives bfloat16 or float32, got out=torch.float16", out=torch.float16)
    refused("no FP8 GEMM takes bfloat16", a.bfloat16())
    refused(
        r"rowwise scales of a are float32 of shape \[16, 1\], got torch.float32 of shape \[\]", kinds=("rowwise",) * 2
    )
    refused("tensorwise scales of a are float32", s=one.double())
    refused("scales 1x128 with tensorwise", kinds=("1x128", "tensorwise"))
    refused("scales 128x128 with 128x128", kinds=("128x128", "128x128"))


def test_a_trial_says_what_a_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    trial.cache_clear()
    assert trial(CPU, "tensorwise", "tensorwise", E4M3, E5M2, torch.bfloat16, fast=True) == ""
    assert trial(CPU, "rowwise", "rowwise", E4M3, E4M3, torch.float32, fast=False) == ""
    assert "cpu refuses it" in trial(CPU, "1x128", "128x128", E4M3, E4M3, torch.bfloat16, fast=False)
    assert (
        trial(CPU, "tensorwise", "tensorwise", E5M2, E5M2, torch.bfloat16, fast=False)
        == "no FP8 GEMM takes e5m2 x e5m2"
    )
    trial.cache_clear()
    real = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, scale_a, scale_b, **how: real(a, b, scale_b, scale_a, **how))
    assert trial(CPU, "tensorwise", "tensorwise", E4M3, E4M3, torch.bfloat16, fast=False) == ""  # the same two numbers
    monkeypatch.setattr(torch, "_scaled_mm", lambda *x, bias, **how: real(*x, **how) * 1.1)
    assert "wrong numbers" in trial(CPU, "tensorwise", "tensorwise", E4M3, E4M3, torch.float32, fast=False)
    trial.cache_clear()


@pytest.mark.parametrize("kind", ["1x128", "128x128"])
def test_blocks_are_laid_out_as_cublas_wants_them(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The CPU has no such GEMM; a slow one that reads the scales by their strides stands in for it."""
    from torch.nn.functional import ScalingType

    seen = []

    def read(codes: Tensor, scale: Tensor, recipe: ScalingType) -> Tensor:
        blocks = codes.shape[1] // 128
        if recipe is ScalingType.BlockWise1x128:
            assert scale.shape == (codes.shape[0], blocks)
            assert scale.stride() == (1, codes.shape[0])
            return decoded(codes, scale, "1x128")
        assert scale.shape == (-(-blocks // 4) * 4, -(-codes.shape[0] // 128))
        assert scale.stride(0) == 1
        return decoded(codes, scale.t()[:, :blocks], "128x128")

    def stand_in(
        a: Tensor, b: Tensor, sa: Tensor, ra: Any, sb: Tensor, rb: Any, *, output_dtype: torch.dtype
    ) -> Tensor:
        assert all(size % 16 == 0 for size in (*a.shape, *b.shape))
        assert a.shape[1] % 128 == 0
        assert b.stride(0) == 1
        seen.append((ra, rb))
        return (read(a, sa, ra) @ read(b.t(), sb, rb).t()).to(output_dtype)

    monkeypatch.setattr(torch.nn.functional, "scaled_mm", stand_in)
    trial.cache_clear()
    assert trial(CPU, "1x128", kind, E4M3, E4M3, torch.float32, fast=False) == ""
    spec = {"input": {"format": "e4m3fn", "scaling": {"kind": "blockwise"}},
            "weight": {"format": "e4m3fn", "scaling": {"kind": "blockwise", "rows": 128 if kind == "128x128" else 1}},
            "grad_output": {"format": "e4m3fn", "scaling": {"kind": "blockwise"}}, "compute": "fp32"}  # fmt: skip
    results = []
    for backend in ("emulated", "native"):
        torch.manual_seed(0)
        layer = nn.Linear(200, 330)
        altgrad.convert(layer, {**spec, "backend": backend})
        x = torch.randn(2, 75, 200, requires_grad=True)
        y = layer(x)
        y.backward(torch.randn(2, 75, 330))
        results.append((y.detach(), x.grad, layer.weight.grad))
    trial.cache_clear()
    rows, other = (
        ScalingType.BlockWise1x128,
        {"1x128": ScalingType.BlockWise1x128}.get(kind, ScalingType.BlockWise128x128),
    )
    assert seen[-3:] == [(rows, other), (rows, other), (rows, rows)]  # fprop, dgrad, wgrad
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


# --- decisions -------------------------------------------------------------------------------------------------------


def decision(spec: Any, inputs: int = I, outputs: int = O) -> Decision:
    layer = nn.Linear(inputs, outputs)
    _, summary = altgrad.convert(layer, spec)
    assert isinstance(layer, CastLinear)
    (report,) = summary.layers
    assert (report.backend, report.backend_reason) == (layer.decision.backend, layer.decision.reason)
    assert f"{report.backend}: {report.backend_reason}" in str(summary)
    return layer.decision


def test_decisions_say_why() -> None:
    assert decision("hybrid").reason == "the CPU has no FP8 units"
    assert decision({"base": "hybrid", "backend": "emulated"}).reason == "the recipe says so"
    native = decision({"base": "hybrid", "backend": "native"})
    assert native.reason == ("the recipe says so; on the CPU a stand-in, slower than BF16; "
                             "72 inputs and 40 outputs are padded to a multiple of 16")  # fmt: skip
    assert {name: how.fast for name, how in native.gemms.items()} == {"fprop": True, "dgrad": False, "wgrad": False}
    slow = decision({"base": "hybrid", "backend": "native", "fast_accumulation": ["wgrad"]}, 16, 16)
    assert slow.reason == "the recipe says so; on the CPU a stand-in, slower than BF16"
    assert [name for name, how in slow.gemms.items() if how.fast] == ["wgrad"]
    part = decision({**RECIPES["e5m2 x e5m2"], "backend": "native"}, 16, 16)
    assert part.reason.endswith("but by values: no FP8 GEMM takes e5m2 x e5m2 (wgrad)")
    assert set(part.gemms) == {"fprop", "dgrad"}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("e5m2", r"no FP8 GEMM takes e5m2 x e5m2 \(fprop, dgrad, wgrad\)"),
        ("e3m4", "no FP8 unit has e3m4"),
        ("mxfp8", "no FP8 GEMM here has scaling 'mx'"),
        ("deepseek-v3", "cpu refuses it: .*Invalid scaling configuration"),
        ({"base": "hybrid", "saved_activations": "e5m2"}, "saved_activations casts the values"),
        ({"base": "e4m3fn", "scaling": "rowwise", "grad_output": "e3m4"}, "no FP8 unit has e3m4 .dgrad, wgrad"),
    ],
)  # fmt: skip
def test_native_where_it_is_impossible_is_one_clear_error(spec: Any, why: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    table = {"base": spec} if isinstance(spec, str) else spec
    with pytest.raises(AltgradError, match=rf"The layer '0' cannot be native on cpu: {why}.* backend = \"auto\""):
        altgrad.convert(model, {**table, "backend": "native"})


def test_a_model_without_its_weights_is_planned_for_this_machine() -> None:
    trial.cache_clear()
    with torch.device("meta"):
        layer, _ = altgrad.convert(nn.Linear(16, 16), {"base": "hybrid", "scaling": "delayed", "backend": "native"})
    assert layer.decision.backend == "native"
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    assert layer.decision.backend == "native"


def test_float64_is_emulated() -> None:
    with pytest.raises(AltgradError, match="computes in float64"):
        altgrad.convert(nn.Linear(16, 16).double(), {"base": "hybrid", "backend": "native"})


def test_a_layer_decides_anew_where_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = altgrad.convert(nn.Linear(16, 16), {"base": "hybrid", "backend": "native"})
    before = layer.decision
    assert copy.deepcopy(layer).decision == before
    with pytest.raises(AltgradError, match="The layer '' cannot be native on cpu: the layer computes in float64"):
        layer.double()
    asked = []
    monkeypatch.setattr(backends, "trial", lambda device, *_, **__: asked.append(device.type) or "")
    layer.float().to("meta")
    assert set(asked) == {"cpu"}  # a meta weight is planned for the machine's device


@pytest.mark.parametrize(
    ("inputs", "outputs", "kind", "worth"),
    [
        (4096, 1024, "tensorwise", False), (4097, 1024, "tensorwise", True), (768, 2304, "tensorwise", True),
        (4096, 2048, "rowwise", False), (1024, 8192, "rowwise", False), (2048, 4096, "rowwise", False),
        (2049, 4096, "rowwise", True), (1025, 8192, "1x128", True),
    ],
)  # fmt: skip
def test_the_rule_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, kind: Any, worth: bool
) -> None:
    assert worth_it(inputs, outputs, kind, "H") == (
        worth,
        f"{inputs} inputs and {outputs} outputs are {'large enough' if worth else 'too small'} for FP8 to be faster, by rule",
    )
    file = tmp_path / "measured.json"
    row = {"k": inputs, "n": outputs, "granularity": kind}
    slower, faster = ({"native_to_emulated": ratio} for ratio in (0.9, 1.25))
    file.write_text(json.dumps({"device_name": "H", "shapes": [
        {**row, "m": 8192, "speed": slower if worth else faster}, {**row, "m": 16, "speed": faster if worth else slower},
    ]}))  # fmt: skip
    monkeypatch.setenv(TABLE, str(file))
    table.cache_clear()
    assert worth_it(inputs, outputs, kind, "H")[0] is not worth
    assert f"times as fast as emulated, says {file}" in worth_it(inputs, outputs, kind, "H")[1]
    assert worth_it(inputs, outputs, kind, "another")[1].endswith("by rule")
    file.write_text("[]")
    table.cache_clear()
    with pytest.raises(AltgradError, match=r"names no table of measurements .*verify-native --json"):
        worth_it(inputs, outputs, kind, "H")


def test_what_shares_a_scale() -> None:
    def of(scaling: Any) -> Any:
        layer, _ = altgrad.convert(nn.Linear(8, 8), {"base": "e4m3fn", "scaling": scaling})
        return granularity(layer.input_cast)

    assert [of(kind) for kind in ("none", "current", "delayed", "rowwise")] == [*["tensorwise"] * 3, "rowwise"]
    assert of("blockwise") == "1x128"
    assert of({"kind": "blockwise", "rows": 128}) == "128x128"
    assert [of("mx"), of("nvfp4"), of({"kind": "blockwise", "columns": 64})] == [None] * 3
    for columns in (384, 640, 4096):  # a wide block is no row
        assert of({"kind": "blockwise", "columns": columns}) is None
    assert pair_problem("1x128", "128x128", E4M3, E4M3) == ""


def test_auto_looks_up_what_verify_native_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several granularities in a layer both name the same one, in every process."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "device_name", lambda device: device.type)
    monkeypatch.setattr(backends, "trial", lambda *_, **__: "")
    monkeypatch.setattr(backends, "worth_it", lambda *args: asked.append(args) or (True, "so"))
    for spec, kind in (("deepseek-v3", "1x128"), ("hybrid", "tensorwise")):
        with torch.device("meta"):
            layer, _ = altgrad.convert(nn.Linear(8, 16), {"base": spec, "backend": "auto"})
        assert asked[-1] == (8, 16, kind, "cuda")
        assert layer_granularity(layer.quantizers()) == kind
    swapped = dict(reversed(altgrad.convert(nn.Linear(8, 16), "deepseek-v3")[0].quantizers().items()))
    assert layer_granularity(swapped) == "1x128"


def test_fast_accumulation_names_gemms() -> None:
    with pytest.raises(AltgradError, match="fast_accumulation"):
        altgrad.convert(nn.Linear(8, 8), {"base": "hybrid", "fast_accumulation": ["forward"]})
