"""Scaling policies: the arithmetic of a scale, and what each policy does with every edge."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad_core.numerics import get_format
from altgrad_core.numerics.amax import tensor_amax
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


@given(positive, st.sampled_from(["e4m3fn", "e5m2", "e2m1fn", "e0m7", "e7m0"]))
@laws
def test_the_smallest_power_of_two_that_fits(amax: float, format: str) -> None:
    f = get_format(format)
    scale = scale_for(torch.tensor(amax), f, power_of_two=True, margin=0).item()
    assert math.frexp(scale)[0] == 0.5
    assert amax / scale <= f.max_finite or scale == MAX_SCALE
    assert amax / (scale / 2) > f.max_finite or scale == MIN_SCALE


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
