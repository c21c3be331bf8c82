"""Laws that every cast obeys, by hypothesis over formats, modes, scales and tensors; those of stochastic rounding exactly.

The formats are drawn from a fixed spread over widths, suffixes and signedness, the tensors are rich in the numbers where
casts go wrong (``altgrad_core.testing.strategies``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics import native
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode, ulp
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw, random_bits
from altgrad_core.testing.formats import assert_same
from altgrad_core.testing.strategies import landmarks, tensors

SIGNED = [
    *("e4m3fn", "e5m2", "e4m3", "e3m4", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2fn", "e2m3fn", "e2m1fn"),
    *("e0m7f", "e1m6f", "e7m0f", "e8m3", "e6m9", "bf16", "fp16", "tf32", "binary8p4se", "binary6p1sf", "binary5p5se"),
]
UNSIGNED = ["binary8p4ue", "binary6p3uf"]
DETERMINISTIC = ROUNDINGS[:-1]
NEAREST = ("nearest_even", "nearest_away")
MIRROR: dict[Rounding, Rounding] = {"up": "down", "down": "up"}

laws = settings(deadline=None, max_examples=150, derandomize=True, database=None)
formats = st.sampled_from(SIGNED + UNSIGNED).map(get_format)
signed_formats = st.sampled_from(SIGNED).map(get_format)
saturations = st.sampled_from(SATURATIONS)
draws = st.builds(
    Draw, seed=st.integers(0, 2**64), step=st.integers(0, 2**40), name=st.sampled_from(["", "a", "layers.0.fprop.x"])
)


# ------------------------------------------------------------------------------------------------------- values


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_idempotent(data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw) -> None:
    x = data.draw(tensors(f))
    once = quantize(x, f, rounding=rounding, saturation=saturation, draw=draw)
    other = Draw(seed=draw.seed + 1)
    assert_same(quantize(once, f, rounding=rounding, saturation=saturation, draw=other), once, x)


@given(st.data(), formats, st.sampled_from(DETERMINISTIC))
@laws
def test_monotone(data: st.DataObject, f: FloatFormat, rounding: Rounding) -> None:
    x = data.draw(tensors(f)).flatten()
    x = x[~torch.isnan(x)].sort().values
    assert (quantize(x, f, rounding=rounding).diff() >= 0).all()


@given(st.data(), signed_formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_odd(data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw) -> None:
    """Negating the input negates the result; up and down change places."""
    x = data.draw(tensors(f))
    q = quantize(x, f, rounding=rounding, saturation=saturation, draw=draw)
    mirrored = quantize(-x, f, rounding=MIRROR.get(rounding, rounding), saturation=saturation, draw=draw)
    assert_same(mirrored, -q if f.has_negative_zero else -q + 0.0, x)


@given(st.data(), formats, st.sampled_from(ROUNDINGS), draws)
@laws
def test_error_and_its_side(data: st.DataObject, f: FloatFormat, rounding: Rounding, draw: Draw) -> None:
    """Within the range: half a spacing at most for the nearest modes, less than one otherwise; directed modes keep
    their side; no value of the format lies between x and the result."""
    x = data.draw(tensors(f, finite=True))
    x = x if f.signed else x.abs()
    x = x[x.abs() <= f.max_finite]
    q = quantize(x, f, rounding=rounding, draw=draw)
    error, unit = q.double() - x.double(), ulp(x, f).double()
    assert (error.abs() <= unit / 2).all() if rounding in NEAREST else (error.abs() < unit).all()
    if rounding == "up":
        assert (error >= 0).all()
    elif rounding == "down":
        assert (error <= 0).all()
    elif rounding == "toward_zero":
        assert (q.abs() <= x.abs()).all()


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_every_result_lies_between_down_and_up(
    data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw
) -> None:
    x = data.draw(tensors(f))
    below, above = (quantize(x, f, rounding=mode) for mode in ("down", "up"))
    q = quantize(x, f, rounding=rounding, draw=draw)
    assert (torch.isnan(x) | (q == below) | (q == above)).all()


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_decode_of_encode_is_quantize(
    data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw
) -> None:
    x = data.draw(tensors(f))
    x = x if f.has_nan else torch.nan_to_num(x, nan=1.0)
    codes = encode(x, f, rounding=rounding, saturation=saturation, draw=draw)
    assert_same(decode(codes, f), quantize(x, f, rounding=rounding, saturation=saturation, draw=draw), x)


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, st.integers(-20, 20), draws)
@laws
def test_a_power_of_two_scales_the_grid(
    data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, exponent: int, draw: Draw
) -> None:
    """Scaling input and grid by a power of two scales the result, where float32 holds all of it."""
    scale = math.ldexp(1.0, exponent)
    x = data.draw(tensors(f))
    representable = f.max_exponent + exponent < 128 and f.min_positive * scale >= 2.0**-126
    exact = ((x * scale / scale == x) | ~torch.isfinite(x)) & representable
    x = torch.where(exact, x, 0.0)
    expected = quantize(x, f, rounding=rounding, saturation=saturation, draw=draw) * scale
    for given_scale in (scale, torch.tensor(scale)):
        got = quantize(x * scale, f, scale=given_scale, rounding=rounding, saturation=saturation, draw=draw)
        assert_same(got, expected, x)


# --------------------------------------------------------------------- independence of how the work is arranged


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_dtypes_agree(data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw) -> None:
    """The same numbers in bfloat16, float16, float32 or float64 give the same values."""
    x = data.draw(tensors(f))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        narrow = x.to(dtype)
        options = {"rounding": rounding, "saturation": saturation, "draw": draw}
        got, _ = cast(narrow, f, dtype=torch.float32, **options)
        expected, _ = cast(narrow.float(), f, dtype=torch.float32, **options)
        assert_same(got, expected, narrow)


@given(st.data(), formats, st.sampled_from(ROUNDINGS), saturations, draws)
@laws
def test_strides_do_not_matter(
    data: st.DataObject, f: FloatFormat, rounding: Rounding, saturation: str, draw: Draw
) -> None:
    x = data.draw(tensors(f))
    options = {"rounding": rounding, "saturation": saturation, "draw": draw}
    before, q = x.clone(), quantize(x, f, **options)
    assert_same(x, before, x)
    views = [torch.stack([x, x], dim=-1)[..., 0], x.flip(0).contiguous().flip(0) if x.dim() else x]
    if x.dim() > 1:
        views += [x.transpose(0, -1).contiguous().transpose(0, -1), x.new_empty(0).expand(0)]
        views[-1] = x[..., :1].expand(x.shape)
    for view in views:
        assert_same(quantize(view, f, **options), quantize(view.contiguous(), f, **options), view)
    assert_same(quantize(views[0], f, **options), q, x)


LARGE = [1, 17, 4095, 65536 + 3, 3 * 65536 + 1]


def large(f: FloatFormat, size: int) -> Tensor:
    """Ordinary numbers with every landmark among them, once the tensor is long enough."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=generator) * min(f.max_finite, 1e30) / 3
    marks = landmarks(f)[: size // 2]
    x[torch.randperm(size, generator=generator)[: len(marks)]] = marks
    return x


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rounding", ["nearest_even", "up", "stochastic"])
@pytest.mark.parametrize("name", ["e4m3fn", "e7m0f", "bf16", "binary8p4ue", "e5m22"])
def test_threads_and_chunks_do_not_matter(threads: Callable[[int], None], name: str, rounding: Rounding) -> None:
    """One thread, two threads, and the tensor in pieces give the same values and the same counts."""
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    for size in LARGE:
        x = large(f, size)
        options = {"rounding": rounding, "scale": 0.7, "dtype": torch.float32}
        threads(1)
        q, vector = cast(x, f, **options, draw=Draw(seed=1, name=name), statistics=True)
        threads(2)
        again, other = cast(x, f, **options, draw=Draw(seed=1, name=name), statistics=True)
        assert_same(again, q, x)
        assert_statistics_agree(other, vector)
        cut = size // 3
        for start, stop in ((0, cut), (cut, size)):
            place = Draw(seed=1, name=name, start=(0, start), columns=size)
            assert_same(cast(x[start:stop], f, **options, draw=place)[0], q[start:stop], x[start:stop])


def assert_statistics_agree(got: Tensor | None, expected: Tensor | None) -> None:
    """Counts, amax and amin exactly, the sums of squares to 1e-6."""
    assert got is not None
    assert expected is not None
    assert got.dtype == expected.dtype == torch.float64
    powers = [FIELDS.index("signal_power"), FIELDS.index("error_power")]
    exact = [index for index in range(len(FIELDS)) if index not in powers]
    assert dict(zip(FIELDS, got[exact].tolist(), strict=False)) == dict(
        zip(FIELDS, expected[exact].tolist(), strict=False)
    )
    assert torch.allclose(got[powers], expected[powers], rtol=1e-6, atol=0.0)


# ----------------------------------------------------------------------------------- the two kernels of the CPU


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Switch between the native kernel and tensor operations."""

    def use(name: str) -> None:
        monkeypatch.setenv("ALTGRAD_KERNEL", name)
        native.status.cache_clear()

    yield use
    monkeypatch.undo()
    native.status.cache_clear()
    native.status()
