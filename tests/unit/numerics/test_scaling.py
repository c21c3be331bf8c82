"""Scaling policies: the arithmetic of a scale, and what each policy does with every edge."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics import get_format
from altgrad_core.numerics.amax import tensor_amax
from altgrad_core.numerics.blockwise import block_counts, expand, matrix_shape
from altgrad_core.numerics.cast import cast, inverse_scale
from altgrad_core.numerics.scaling import MAX_SCALE, MIN_SCALE, ScalingPolicy, scale_for
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.plugins import installed

E4M3 = get_format("e4m3fn")
positive = st.floats(min_value=2.0**-149, max_value=3.4028234663852886e38, width=32)
laws = settings(deadline=None, max_examples=200, derandomize=True, database=None)


def make(kind: str, format: str = "e4m3fn", **options: object) -> ScalingPolicy:
    extension = installed().get("scaling", kind)
    policy = extension.value(extension.options(**options), get_format(format))
    assert isinstance(policy, ScalingPolicy)
    return policy


def scale_of(policy: ScalingPolicy, *x: float) -> float:
    scale = policy(torch.tensor(x))
    assert scale.dim() == 0
    assert scale.dtype is torch.float32
    return scale.item()


@given(positive, st.sampled_from(["e4m3fn", "e5m2", "e2m1fn", "e0m7", "e7m0", "int8", "nf4"]))
@laws
def test_the_smallest_power_of_two_that_fits(amax: float, format: str) -> None:
    f = get_format(format)
    scale = scale_for(torch.tensor(amax), f, power_of_two=True, margin=0).item()
    assert math.frexp(scale)[0] == 0.5
    assert amax / scale <= f.max_finite or scale == MAX_SCALE
    assert amax / (scale / 2) > f.max_finite or scale == MIN_SCALE


@given(positive, st.sampled_from(["posit8", "takum8", "takum_linear8"]), st.booleans())
@laws
def test_tapered_formats_are_scaled_to_where_they_are_dense(amax: float, format: str, power_of_two: bool) -> None:
    scale = scale_for(torch.tensor(amax), get_format(format), power_of_two=power_of_two, margin=0).item()
    if MIN_SCALE < scale < MAX_SCALE:
        assert amax / scale <= 8.0 * (1 + 2.0**-23)
        assert amax / scale > (4.0 if power_of_two else 8.0 * (1 - 2.0**-23))


@given(positive, st.integers(-3, 3))
@laws
def test_a_margin_is_a_power_of_two(amax: float, margin: int) -> None:
    for power_of_two in (True, False):
        plain, moved = (
            scale_for(torch.tensor(amax), E4M3, power_of_two=power_of_two, margin=m).item() for m in (0, margin)
        )
        assert moved == min(max(plain * 2.0**margin, MIN_SCALE), MAX_SCALE) or plain in (MIN_SCALE, MAX_SCALE)


@given(positive)
@laws
def test_an_exact_scale_puts_the_largest_at_the_end(amax: float) -> None:
    scale = scale_for(torch.tensor(amax), E4M3, power_of_two=False, margin=0)
    if MIN_SCALE < scale.item() < MAX_SCALE:
        q, statistics = cast(torch.tensor([amax, -amax]), E4M3, scale=scale, statistics=True)
        assert q.tolist() == [448.0, -448.0]
        assert statistics[FIELDS.index("overflow")] == 0


@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-130, 1.0, 3.4028234663852886e38])
@pytest.mark.parametrize("format", ["e4m3fn", "e0m7", "e2m1fn", "bf16", "fp32", "e7m0"])
@pytest.mark.parametrize("margin", [-64, 0, 64])
def test_a_scale_and_its_inverse_are_normal_numbers(amax: float, format: str, margin: int) -> None:
    for power_of_two in (True, False):
        scale = scale_for(torch.tensor(amax), get_format(format), power_of_two=power_of_two, margin=margin)
        assert MIN_SCALE <= scale.item() <= MAX_SCALE
        assert 2.0**-126 <= inverse_scale(scale).item() <= 2.0**126


@pytest.mark.parametrize("amax", [0.0, math.inf, math.nan])
def test_no_scale_can_be_made_of_these(amax: float) -> None:
    assert scale_for(torch.tensor(amax), E4M3, power_of_two=True, margin=3).item() == 1.0


def test_exponent_bits_not_logarithms() -> None:
    below = torch.nextafter(torch.tensor(448.0 * 256), torch.tensor(0.0))
    above = torch.nextafter(torch.tensor(448.0 * 256), torch.tensor(math.inf))
    scales = [scale_for(a, E4M3, power_of_two=True, margin=0).item() for a in (below, torch.tensor(448.0 * 256), above)]
    assert scales == [256.0, 256.0, 512.0]


def test_amax() -> None:
    assert tensor_amax(torch.tensor([[1.0, -3.0]])).item() == 3.0
    assert tensor_amax(torch.tensor([1.5], dtype=torch.bfloat16)).dtype is torch.float32
    assert tensor_amax(torch.empty(0, 3)).item() == 0.0
    assert math.isinf(tensor_amax(torch.tensor([1.0, -math.inf])).item())
    assert math.isnan(tensor_amax(torch.tensor([1.0, math.nan, math.inf])).item())


def test_none_and_static() -> None:
    assert scale_of(make("none"), 1e9) == 1.0
    assert make("none").power_of_two
    assert scale_of(make("static", scale=0.25), 1e9) == 0.25
    assert make("static", scale=0.25).power_of_two
    assert not make("static", scale=0.3).power_of_two
    assert scale_of(make("static", scale=0.3), 1.0) == torch.tensor(0.3).item()


def test_current() -> None:
    policy = make("current")
    assert scale_of(policy, 448.0, -449.0) == 2.0
    assert scale_of(policy, 1.0) == 2.0**-8
    assert scale_of(make("current", power_of_two=False), 1.0, -7.0) == 7.0 / 448
    assert scale_of(make("current", margin=1), 448.0) == 2.0
    for useless in ([0.0, -0.0], [1.0, math.inf], [math.nan, 1.0], []):
        assert scale_of(policy, *useless) == 1.0
    assert list(policy.buffers()) == []


def test_delayed_uses_what_came_before() -> None:
    policy = make("delayed", history=3)
    amaxes = [448.0, 896.0, 1.0, 1.0, 1.0, 1.0]
    assert [scale_of(policy, a) for a in amaxes] == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0**-8]
    recent = make("delayed", history=3, algorithm="most_recent")
    assert [scale_of(recent, a) for a in amaxes] == [1.0, 1.0, 2.0, 2.0**-8, 2.0**-8, 2.0**-8]
    assert policy.amax_history.tolist() == [1.0, 1.0, 1.0]


def test_delayed_keeps_its_scale_through_useless_tensors() -> None:
    policy = make("delayed", history=2)
    assert scale_of(policy, 0.0) == 1.0
    assert scale_of(policy, math.inf) == 1.0
    assert policy.amax_history.tolist() == [0.0, 0.0]
    assert scale_of(policy, 896.0) == 2.0
    for useless in ([0.0], [math.inf], [math.nan], []):
        assert scale_of(policy, *useless) == 2.0
    assert policy.amax_history.tolist() == [896.0, 0.0]


def test_delayed_learns_in_training_mode_only() -> None:
    policy = make("delayed", history=2)
    scale_of(policy, 448.0)
    policy.eval()
    assert scale_of(policy, 1e6) == 1.0
    assert policy.amax_history.tolist() == [448.0, 0.0]


def test_delayed_state_is_a_named_buffer() -> None:
    policy = make("delayed", history=2)
    scale_of(policy, 896.0)
    state = policy.state_dict()
    assert list(state) == ["amax_history"]
    again = make("delayed", history=2)
    again.load_state_dict(state)
    assert scale_of(again, 1.0) == 2.0


def test_no_gradient_through_a_scale() -> None:
    x = torch.ones(3, requires_grad=True)
    for kind in ("none", "current", "delayed"):
        assert not make(kind)(x).requires_grad


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("static", {"scale": 0.0}),
        ("static", {"scale": -1.0}),
        ("static", {"scale": math.nan}),
        ("static", {"scale": math.inf}),
        ("current", {"margin": 65}),
        ("delayed", {"history": 0}),
        ("delayed", {"algorithm": "mean"}),
    ],
)
def test_useless_options_are_refused(kind: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"scale|margin|history|algorithm"):
        installed().get("scaling", kind).options(**options)


def test_static_needs_its_scale() -> None:
    (field,) = attrs.fields(installed().get("scaling", "static").options)
    assert field.default is attrs.NOTHING


# ------------------------------------------------------------------------------------- every policy, every edge

POLICIES: dict[str, dict[str, object]] = {
    "none": {},
    "static": {"scale": 0.25},
    "current": {},
    "delayed": {"history": 2},
    "rowwise": {},
    "blockwise": {"columns": 4},
    "mx": {"block": 4},
    "nvfp4": {"block": 4},
}
FROM_DATA = [kind for kind in POLICIES if kind not in ("none", "static")]
BY_BLOCK = [kind for kind in FROM_DATA if kind not in ("current", "delayed")]


def policy(kind: str, format: str = "e2m1fn", **options: object) -> ScalingPolicy:
    return make(kind, format, **(POLICIES[kind] | options))


def scales(policy: ScalingPolicy, x: Tensor, axis: int = -1) -> Tensor:
    """The decode scale of each element of x, as a matrix."""
    scale, block = policy.shared_out(x, axis).decode, policy.block(x, axis)
    rows, columns = matrix_shape(x.shape)
    assert scale.dtype is torch.float32
    assert not scale.requires_grad
    if block is None:
        assert scale.dim() == 0
        return scale.expand(rows, columns)
    assert tuple(scale.shape) == block_counts(x.shape, block)
    return expand(scale, x.shape, block).reshape(rows, columns)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("kind", POLICIES)
def test_strides_dtypes_and_dimensions_do_not_matter(kind: str, axis: int) -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = scales(policy(kind), x, axis)
    wide = torch.stack([x, x], dim=-1)
    for same in (x.t().contiguous().t(), wide[..., 0], x.view(2, 3, 10), x.float(), x.double(), x.view(3, 2, 10)):
        assert torch.equal(scales(policy(kind), same, axis), expected)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 3), (3, 0), (2, 0, 3)])
def test_small_and_empty_tensors(kind: str, axis: int, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 6.0)
    whole = scales(policy(kind, "e2m1fn"), x, axis)
    assert whole.shape == matrix_shape(shape)
    fixed = {"none": 1.0, "static": 0.25}.get(kind, 1.0)
    assert torch.allclose(whole, torch.full_like(whole, fixed), rtol=1e-6)


@pytest.mark.parametrize("kind", FROM_DATA)
@pytest.mark.parametrize("useless", [0.0, math.inf, -math.inf, math.nan])
def test_a_useless_tensor_row_or_block_has_scale_1(kind: str, useless: float) -> None:
    """Where there are blocks, in its own block only; but nvfp4's tensor scale is the tensor's."""
    x = torch.full((3, 8), 48.0)
    x[1, :4] = useless
    if useless == 0.0:
        assert scale_of_zeros(policy(kind)) == 1.0
    whole = scales(policy(kind), x)
    if kind in BY_BLOCK:
        width = 8 if kind == "rowwise" else 4
        others = torch.ones_like(x, dtype=torch.bool)
        others[1, :width] = False
        if kind == "rowwise" and useless == 0.0:
            assert whole.eq(8).all()
        elif kind == "nvfp4" and useless == 0.0:
            assert torch.allclose(whole[others], torch.tensor(8.0))
            assert torch.allclose(whole[~others], torch.tensor(48.0 / 2688))
        else:
            assert whole[~others].eq(1).all()
            assert whole[others].eq(8).all()
    else:
        assert whole.eq(8 if useless == 0.0 else 1).all()


def scale_of_zeros(policy: ScalingPolicy) -> float:
    found = scales(policy, torch.zeros(5, 9))
    assert found.eq(found[0, 0]).all()
    return found[0, 0].item()


@pytest.mark.parametrize("size", [2.0**-149, 2.0**-130, 1.0, 3.4028234663852886e38])
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("format", ["e2m1fn", "e4m3fn", "e0m7", "int8", "nf4", "posit8"])
def test_huge_and_tiny_tensors(kind: str, format: str, size: float) -> None:
    whole = scales(policy(kind, format), torch.full((2, 6), size))
    least, most = (2.0**-127, 2.0**127) if kind == "mx" else (MIN_SCALE, MAX_SCALE)
    assert least <= whole.min().item() <= whole.max().item() <= most
    if kind in FROM_DATA and 1.0 <= size / get_format(format).max_finite <= 2.0**120:
        assert (torch.tensor(size) / whole <= get_format(format).max_finite * (1 + 2.0**-3)).all()


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("options", [{}, {"power_of_two": False}, {"power_of_two": True}])
def test_the_parts_of_a_scale_make_the_scale(kind: str, options: dict[str, bool]) -> None:
    if options and kind in ("none", "static", "mx"):
        options = {}
    found = policy(kind, **options)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    decode, inside, factor = found.shared_out(x)
    assert inside.shape == decode.shape
    if factor is None:
        assert torch.equal(inside, decode)
    else:
        assert factor.dim() == 0
        assert 1 <= factor < 2
        assert torch.allclose(inside * factor, decode, rtol=2.0**-23)
    if found.power_of_two:
        assert torch.frexp(decode)[0].eq(0.5).all()
    if found.keeps_bfloat16:
        assert torch.equal((inside * 1.5).bfloat16().float(), inside * 1.5)
    assert found.keeps_bfloat16 == (kind not in ("rowwise", "blockwise") or options.get("power_of_two", True))


def test_nvfp4_keeps_bfloat16_where_its_products_fit() -> None:
    assert not policy("nvfp4", "e3m4").keeps_bfloat16  # 5 + 4 significant bits
    assert policy("nvfp4", "e4m3fn").keeps_bfloat16
    assert not policy("nvfp4", "nf4").keeps_bfloat16


def test_blocks_follow_the_axis() -> None:
    x = torch.ones(2, 3, 300)
    found = {kind: (make(kind).block(x), make(kind).block(x, 0)) for kind in ("rowwise", "blockwise", "mx", "nvfp4")}
    assert found == {
        "rowwise": ((1, 300), (6, 1)),
        "blockwise": ((1, 128), (128, 1)),
        "mx": ((1, 32), (32, 1)),
        "nvfp4": ((1, 16), (16, 1)),
    }
    assert all(make(kind).directional for kind in found)
    square = make("blockwise", rows=128, columns=128)
    assert not square.directional
    assert square.block(x) == square.block(x, 0) == (128, 128)
    assert make("blockwise", rows=2, columns=64).block(x, 0) == (64, 2)
    assert make("mx", "mxfp4").block(x) == (1, 32)
    assert make("nvfp4", "nvfp4").block(x) == (1, 16)


def test_margins_and_exact_scales_of_blocks() -> None:
    x = torch.tensor([[448.0, 1.0, 7.0, 0.0], [3.0, 3.0, 896.0, 0.0]])
    assert make("rowwise", margin=1)(x).tolist() == [[2.0], [4.0]]
    assert make("rowwise")(x, 0).tolist() == [[1.0, 2.0**-7, 2.0, 1.0]]
    exact = make("blockwise", columns=2, power_of_two=False)(x)
    assert torch.equal(exact, torch.tensor([[448.0, 7.0], [3.0, 896.0]]) / 448)


def test_modes_of_mx() -> None:
    x = torch.tensor([[6.5]])
    assert [make("mx", "e2m1fn", mode=mode)(x).item() for mode in ("floor", "even", "ceil", "rceil")] == [1, 1, 2, 2]
    assert make("mx", "e2m1fn")(x).item() == 2.0


def test_delayed_state_is_exact() -> None:
    """A policy that is loaded goes on as the one that was saved, whatever was seen, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    seen = [torch.randn(7, generator=generator) * 10.0**k for k in (0, 3, -4, 30, -30, 2, 1)]
    seen[3][2], seen[5] = math.nan, seen[5] * 0
    for options in ({}, {"algorithm": "most_recent", "power_of_two": False}):
        saved = make("delayed", history=3, **options)
        for x in seen[:4]:
            saved(x)
        loaded = make("delayed", history=3, **options)
        loaded.load_state_dict(saved.state_dict())
        assert [saved(x).item() for x in seen[4:]] == [loaded(x).item() for x in seen[4:]]
        assert torch.equal(saved.amax_history, loaded.amax_history)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make("delayed", history=4).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind != "delayed"])
def test_no_other_policy_has_state(kind: str) -> None:
    found = policy(kind)
    found(torch.ones(4, 4))
    assert found.state_dict() == {}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("blockwise", {"rows": 0}),
        ("blockwise", {"columns": 65537}),
        ("rowwise", {"margin": -65}),
        ("mx", {"mode": "round"}),
        ("mx", {"block": 0}),
        ("nvfp4", {"block": 0}),
    ],
)
def test_useless_options_of_blocks_are_refused(kind: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        installed().get("scaling", kind).options(**options)
