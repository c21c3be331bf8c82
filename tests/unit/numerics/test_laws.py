"""Laws that every cast obeys, by hypothesis over formats, modes, scales and tensors; kernels and the compiler agree.

The formats are drawn from a fixed spread over widths, suffixes and signedness, the tensors are rich in the numbers where
casts go wrong (``altgrad_core.testing.strategies``). What stochastic rounding owes besides is in ``test_stochastic.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spread import SIGNED, UNSIGNED, draws, formats, laws, saturations, signed_formats
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode, ulp
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.testing.exact import assert_same
from altgrad_core.testing.strategies import landmarks, tensors

DETERMINISTIC = ROUNDINGS[:-1]
NEAREST = ("nearest_even", "nearest_away")
MIRROR: dict[Rounding, Rounding] = {"up": "down", "down": "up"}


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
    """Within the range: half a spacing at most for the nearest modes, one otherwise; directed modes keep
    their side; no value of the format lies between x and the result."""
    x = data.draw(tensors(f, finite=True))
    x = x if f.signed else x.abs()
    x = x[x.abs() <= f.max_finite]
    q = quantize(x, f, rounding=rounding, draw=draw)
    error, unit = q.double() - x.double(), ulp(x, f).double()
    assert (error.abs() <= unit * (0.5 if rounding in NEAREST else 1.0)).all()
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


@pytest.mark.parametrize("rounding", ["nearest_even", "up", "stochastic"])
@pytest.mark.parametrize("name", ["e4m3fn", "e7m0f", "bf16", "binary8p4ue", "e5m22"])
def test_threads_and_chunks_do_not_matter(threads: Callable[[int], None], name: str, rounding: Rounding) -> None:
    """One thread, two threads, and the tensor in pieces give the same values and the same counts."""
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    for size in LARGE:
        threads(1)
        x = large(f, size)
        options = {"rounding": rounding, "scale": 0.7, "dtype": torch.float32}
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

KERNEL_FORMATS = [*SIGNED, *UNSIGNED, "e5m22", "e8m3fnuz", "e1m0", "binary5p1ue"]


@pytest.mark.parametrize("name", KERNEL_FORMATS)
def test_the_native_kernel_and_tensor_operations_agree(kernel: Callable[[str], None], name: str) -> None:
    """Bit for bit in every mode, with scales of the tensor and of blocks, into bfloat16 too; statistics as well."""
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    x = large(f, 3 * 97 * 64).reshape(3 * 97, 64)[:, :61]
    blocks = torch.rand(-(-len(x) // 3), 2, generator=torch.Generator().manual_seed(3)) + 0.5
    scales: list[dict[str, object]] = [
        {},
        {"scale": 0.7, "multiplier": 0.7},
        {"scale": torch.tensor(2.0**-7)},
        {"scale": blocks, "multiplier": blocks, "block": (3, 32)},
        {"scale": blocks[:1].repeat(len(x), 1).exp2().floor(), "block": (1, 32)},
    ]
    draw = Draw(seed=5, name=name)
    for rounding, saturation in itertools.product(ROUNDINGS, SATURATIONS):
        for options, random, source in zip(scales, (32, 24, 9, 23, 1), (x, x, x.bfloat16(), x, x.half()), strict=True):
            results = []
            for which in ("native", "torch"):
                kernel(which)
                results.append(
                    cast(
                        source,
                        f,
                        rounding=rounding,
                        saturation=saturation,
                        draw=draw,
                        random_bits=random,
                        statistics=True,
                        **options,
                    )
                )
            (q, vector), (expected, other) = results
            assert q.dtype is expected.dtype
            assert_same(q, expected, source)
            assert_statistics_agree(vector, other)


def test_amax_of_the_two_kernels(kernel: Callable[[str], None]) -> None:
    x = torch.randn(77, 133, generator=torch.Generator().manual_seed(4))
    x[5, 5], x[40, 60], x[76, 132] = math.nan, -math.inf, 0.0
    for source, block in itertools.product(
        (x, x.bfloat16(), x.half(), x[:, ::2], x[:0], x[0], x[3, 3]), (None, (1, 32), (32, 1), (16, 128), (1000, 1000))
    ):
        found = []
        for which in ("native", "torch"):
            kernel(which)
            found.append(tensor_amax(source) if block is None else block_amax(source, block))
        assert found[0].shape == found[1].shape
        assert_same(found[0].flatten(), found[1].flatten(), found[1].flatten())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn
@pytest.mark.parametrize("rounding", ROUNDINGS[1:])
@pytest.mark.parametrize("name", ["e4m3fn", "e7m0f", "bf16", "binary8p4ue"])
def test_compiled_is_eager(name: str, rounding: Rounding) -> None:
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    x = landmarks(f)
    draw = Draw(seed=1, name=name)
    torch.compiler.reset()

    def run(t: Tensor) -> tuple[Tensor, Tensor | None]:
        return cast(t, f, scale=0.7, rounding=rounding, draw=draw, dtype=torch.float32, statistics=True)

    got, vector = torch.compile(run, fullgraph=True, dynamic=True)(x)
    torch.compiler.reset()
    expected, other = run(x)
    assert_same(got, expected, x)
    assert_statistics_agree(vector, other)
