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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode, ulp
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding
from altgrad_core.numerics.roundings import round_to_grid
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

laws = settings(deadline=None, max_examples=500, derandomize=True, database=None)
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


# ----------------------------------------------------------------------------------------- stochastic rounding

SMALL = ["e2m1fn", "e4m3fn", "e7m0f", "e0m4f", "e8m1", "binary6p3se"]


def between(f: FloatFormat) -> Tensor:
    """Return numbers between neighbouring values, of both signs, at fractions that few and many bits tell apart."""
    codes = range(0, f.max_code, max(1, f.max_code // 12))
    fractions = [Fraction(k, 16) for k in range(1, 16)] + [Fraction(1, 4096), Fraction(4095, 4096), Fraction(683, 2048)]
    x = [
        float(Fraction(f.magnitude(code)) * (1 - part) + Fraction(f.magnitude(code + 1)) * part)
        for code in codes
        for part in fractions
    ]
    exact = torch.tensor(x, dtype=torch.float64)
    exact = exact[exact.float().double() == exact].float()
    return torch.cat([exact, -exact])


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("name", SMALL)
def test_mean_and_variance_over_all_draws(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """All 2^N draws, each once: the mean is x up to half of 2^-N of the spacing, exactly x where 2^N resolves it, and
    the variance that of the two neighbours."""
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    x = between(f)
    below, above = (quantize(x, f, rounding=mode).double() for mode in ("down", "up"))
    monkeypatch.setenv("ALTGRAD_KERNEL", "torch")  # the draws are put in by hand
    results = []
    for r in range(2**count):
        bits = torch.full(x.shape, r << (32 - count), dtype=torch.int64)
        q, _ = round_to_grid(x, grid_of(f), "stochastic", "finite", bits, count)
        results.append(q.double())
    q = torch.stack(results)
    assert ((q == below) | (q == above)).all()
    spacing, mean = above - below, q.mean(dim=0)
    assert ((mean - x.double()).abs() <= spacing * 2.0 ** -(count + 1)).all()
    share = (x.double() - below) / spacing * 2**count
    resolved = share == share.round()
    assert resolved.any()
    assert torch.equal(mean[resolved], x.double()[resolved])
    variance = (q - mean).square().mean(dim=0)
    assert torch.allclose(variance, (mean - below) * (above - mean), rtol=1e-12, atol=0.0)


@given(st.data(), formats, draws, st.integers(1, 32))
@laws
def test_a_value_of_the_format_never_moves(data: st.DataObject, f: FloatFormat, draw: Draw, count: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**f.bits - 1), min_size=1, max_size=40))
    x = torch.tensor([f.value(code) for code in codes])
    assert_same(quantize(x, f, rounding="stochastic", saturation="none", draw=draw, random_bits=count), x, x)


def test_full_width_is_unbiased_in_the_mean() -> None:
    """A million draws of one number: the mean lies within five of its standard deviations."""
    n = 2**20
    for x, below, above in ((1.03, 1.0, 1.125), (-300.0, -288.0, -320.0), (2.0**-12, 0.0, 2.0**-9)):
        q = quantize(torch.full((n,), x), "e4m3fn", rounding="stochastic", draw=Draw(seed=3, name=str(x))).double()
        share = (torch.tensor(x).double().item() - below) / (above - below)
        assert set(q.tolist()) == {below, above}
        assert abs((q == above).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / n)


def chi_square(counts: Tensor) -> float:
    """Return Pearson's statistic for equally likely cells, as standard deviations from its mean."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts.double() - expected).square() / expected).sum().item()
    degrees = counts.numel() - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


BITS = {
    "elements": random_bits(Draw(seed=0), (1000, 1000)),
    "elements past 2^32": random_bits(Draw(seed=0, start=(2**32, 0), columns=1000), (1000, 1000)),
    "seeds": torch.cat([random_bits(Draw(seed=s), (16,)) for s in range(4000)]),
    "steps": torch.cat([random_bits(Draw(seed=1, step=s), (16,)) for s in range(4000)]),
    "names": torch.cat([random_bits(Draw(seed=1, name=f"layers.{s}.x"), (16,)) for s in range(4000)]),
}


@pytest.mark.parametrize("over", BITS)
def test_bits_are_uniform_and_neighbours_independent(over: str) -> None:
    """Chi-square of every byte, of every pair of bits of neighbours, and of top bytes of neighbours: five deviations.

    Along elements a neighbour is the next one; along seeds, steps and names the same element of the next tensor.
    """
    bits = BITS[over].flatten()
    for shift in (0, 8, 16, 24):
        assert abs(chi_square(torch.bincount((bits >> shift) & 255, minlength=256))) < 5
    distances = (1, 2, 1000) if over.startswith("elements") else (16, 32, 1)
    for distance in distances:
        here, there = bits[:-distance], bits[distance:]
        assert abs(chi_square(torch.bincount((here >> 28) * 16 + (there >> 28), minlength=256))) < 5
        mixed = here ^ there
        ones = torch.stack([((mixed >> bit) & 1).sum() for bit in range(32)]).double()
        deviations = (ones - len(mixed) / 2) / math.sqrt(len(mixed) / 4)
        assert deviations.abs().max() < 5


def test_different_tensors_steps_and_seeds_draw_different_bits() -> None:
    made = [
        Draw(seed=seed, step=step, name=name) for seed in (0, 1, -1) for step in (0, 1, 2) for name in ("", "a", "b")
    ]
    # Texts that would run together were they only joined.
    made += [Draw(seed=1, step=11), Draw(seed=11, step=1), Draw(seed=0, step=0, name="0"), Draw(seed=0, name=" ")]
    drawn = [tuple(random_bits(draw, (8,)).tolist()) for draw in made]
    assert len(set(drawn)) == len(made)
    x = torch.full((1000,), 1.06)
    q = [quantize(x, "e4m3fn", rounding="stochastic", draw=draw) for draw in made]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(q, 2))
    assert torch.equal(quantize(x, "e4m3fn", rounding="stochastic", draw=made[0]), q[0])


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.tuples(st.integers(0, 11), st.integers(0, 39)),
    st.tuples(st.integers(1, 12), st.integers(1, 40)),
    st.sampled_from([0, 2**32 // 40 - 3, 2**33]),
    draws,
)
@laws
def test_a_shard_draws_as_the_whole(
    rows: int, columns: int, start: tuple[int, int], size: tuple[int, int], row: int, draw: Draw
) -> None:
    """Any rectangle of a matrix, wherever that lies (also across 2^32 elements), rounds as it does in the whole."""
    whole = Draw(seed=draw.seed, step=draw.step, name=draw.name, start=(row, 0))
    x = torch.linspace(-3.0, 3.0, rows * columns).reshape(rows, columns)
    q = quantize(x, "e3m2fn", rounding="stochastic", draw=whole)
    top, left = min(start[0], rows - 1), min(start[1], columns - 1)
    part = (slice(top, top + size[0]), slice(left, left + size[1]))
    place = Draw(seed=draw.seed, step=draw.step, name=draw.name, start=(row + top, left), columns=columns)
    assert torch.equal(quantize(x[part], "e3m2fn", rounding="stochastic", draw=place), q[part])
    assert torch.equal(random_bits(whole, x.shape)[part], random_bits(place, x[part].shape))


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
