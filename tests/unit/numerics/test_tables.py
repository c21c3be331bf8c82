"""Table formats: what a table may be, the built-in ones derived a second time, and rounding to them."""

from __future__ import annotations

import math
import statistics
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import TableFormat, get_format
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.tables import round_to_table, table_overflow
from altgrad_core.testing.exact import assert_same
from altgrad_core.testing.strategies import landmarks

EXTREME = TableFormat(name="extreme", table=(0.1, 1e-300, 1e300, -1e200))
UNSIGNED = TableFormat(name="unsigned", table=(0.0, 1.0, 2.5, math.inf, 0.3, 0.7, math.nan, 100.0))
ONE_BIT = TableFormat(name="one bit", table=(-1.0, 1.0), beyond=(-3.0, 2.0))
ONE_BIT_WITH_ZERO = TableFormat(name="zero and one", table=(0.0, 1.0), beyond=(-2.0, 1.5))
NO_ZERO = TableFormat(name="no_zero", table=(-0.1, 0.1, 3.0, -7.0), beyond=(-8.0, 4.5))


def table_format(name: str) -> TableFormat:
    found = get_format(name)
    assert isinstance(found, TableFormat)
    return found


# ------------------------------------------------------------------------------------------------ what a table may be


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ((0.0, 1.0, 2.0), "2\\^bits of them, up to 16 bits; got 3. Fill up with NaN"),
        ((0.0,), "got 1"),
        ((0.0, 1.0, 1.0, 2.0), "1.0 at code 1 and at code 2"),
        ((0.0, math.inf, math.inf, 1.0), "inf at code 1 and at code 2"),
        ((0.0, -0.0, 1.0, -0.0), "-0.0 at code 1 and at code 3"),
        ((-0.0, 1.0), "has -0.0 but not 0.0"),
        ((0.0, math.nan), "needs two finite values, one of them above zero"),
        ((0.0, -1.0), "needs two finite values, one of them above zero"),
    ],
)
def test_what_is_no_table(table: tuple[float, ...], reason: str) -> None:
    with pytest.raises(AltgradError, match=reason):
        TableFormat(name="mine", table=table)


def test_beyond_lies_outside() -> None:
    for beyond in ((-1.0, 2.0), (-2.0, 1.0), (-2.0, math.inf), (math.nan, 2.0)):
        with pytest.raises(AltgradError, match=r"beyond is a number below -1.0 and one above 1.0, got"):
            TableFormat(name="mine", table=(-1.0, 0.0, 0.5, 1.0), beyond=beyond)


def test_a_table_of_one_bit_keeps_what_lies_beyond_it_apart() -> None:
    """Two values and two beyond them are not the four values of two bits."""
    with_ends = TableFormat(name="one", table=(-1, 1), beyond=[-3, 2])
    assert with_ends.beyond == (-3.0, 2.0)
    assert quantize(torch.tensor([-9.0, -0.1, 0.1, 9.0]), with_ends).tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert with_ends.constants != TableFormat(name="two", table=(-1, 1, -3, 2)).constants


def test_a_table_of_anything() -> None:
    f = TableFormat(name="mine", table=[1, 0, math.nan, -3, math.nan, math.inf, -0.0, 0.5])
    assert (f.bits, f.signed, f.min_finite, f.max_finite, f.min_positive) == (3, True, -3.0, 1.0, 0.5)
    assert (f.nan_code, f.inf_code, f.has_negative_inf, f.has_negative_zero) == (2, 5, False, True)
    assert (f.numbers, f.number_codes) == ((-3.0, 0.0, 0.5, 1.0), (3, 1, 7, 0))
    assert f == TableFormat(name="mine", table=f.table)
    assert f != TableFormat(name="mine", table=f.table, beyond=(-4.0, 2.0))
    assert hash(f) == hash(TableFormat(name="mine", table=f.table))


# ------------------------------------------------------------------------------------- the built-in ones, once more


def negated(code: int, bits: int) -> int:
    """Return the two's complement."""
    return -code % 2**bits


def test_posit8_by_twos_complement() -> None:
    """Decode the positive half by repeated squaring of the regime's base, the other half by negation."""
    for code, value in enumerate(table_format("posit8").table):
        if code == 0x80:
            assert math.isnan(value)
            continue
        magnitude = negated(code, 8) if code > 0x80 else code
        exact = Fraction(0)
        if magnitude:
            bits = [magnitude >> i & 1 for i in range(6, -1, -1)]
            run = next((i for i, bit in enumerate(bits) if bit != bits[0]), len(bits))
            k = run - 1 if bits[0] else -run
            tail = [*bits[run + 1 :], 0, 0, 0, 0, 0, 0]
            fraction = sum(Fraction(bit, 2 ** (i + 1)) for i, bit in enumerate(tail[2:]))
            exact = Fraction(16) ** k * 2 ** (2 * tail[0] + tail[1]) * (1 + fraction)
        assert Fraction(value) == (-exact if code > 0x80 else exact)


def test_posit8_of_the_standards_examples() -> None:
    """One is the code 0x40, minpos and maxpos are 2^-24 and 2^24, codes as signed integers are in the order of values."""
    table = table_format("posit8").table
    assert (table[0x40], table[0x01], table[0x7F], table[0xC0]) == (1.0, 2.0**-24, 2.0**24, -1.0)
    order = [table[code % 256] for code in range(-127, 128)]
    assert order == sorted(order)
    assert table[0x40:0x48] == (1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875)


def takum_logarithm(code: int) -> Fraction:
    """Return l of a positive 8-bit takum, from the intervals that each regime covers.

    With the direction bit set the regime r covers c from 2^r - 1 to 2^(r+1) - 2; clear, it is r = 7 - R and mirrored.
    """
    direction, regime, rest = code >> 6, code >> 3 & 7, code & 7
    r = regime if direction else 7 - regime
    low = Fraction(2**r - 1) if direction else Fraction(1 - 2 ** (r + 1))
    # The three bits left are the upper ones of the 2^r integers and their fractions.
    return low + Fraction(2**r) * Fraction(rest, 8)


def test_takum8_by_intervals() -> None:
    getcontext().prec = 60
    table = table_format("takum8").table
    assert math.isnan(table[0x80])
    assert table[0] == 0
    for code in range(1, 128):
        logarithm = takum_logarithm(code)
        exact = (Decimal(logarithm.numerator) / logarithm.denominator / 2).exp()
        assert table[code] == float(exact) == -table[negated(code, 8)]
    assert list(table[1:128]) == sorted(table[1:128])
    assert table[0x40] == 1.0


def test_linear_takum8_by_intervals() -> None:
    table = table_format("takum_linear8").table
    assert math.isnan(table[0x80])
    for code in range(1, 128):
        logarithm = takum_logarithm(code)
        c = math.floor(logarithm)
        assert Fraction(table[code]) == (1 + logarithm - c) * Fraction(2) ** c
        assert table[negated(code, 8)] == -table[code]
    assert table[0x40] == 1.0


def test_nf4_from_quantiles() -> None:
    """Appendix E: quantiles of the normal distribution, eight above and seven below zero, divided by the largest."""
    quantile = statistics.NormalDist().inv_cdf
    offset = 0.9677083
    upper = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    lower = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    derived = sorted(value / max(upper) for value in [*upper, *lower, 0.0])
    assert table_format("nf4").table == pytest.approx(derived, abs=2e-7)
    assert table_format("nf4").fits_float32


def test_int8_is_two_complement_in_64ths() -> None:
    f = table_format("int8")
    for code in range(256):
        assert f.value(code) == int.from_bytes([code], signed=True) / 64


# ------------------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("f", [EXTREME, UNSIGNED, NO_ZERO, ONE_BIT, ONE_BIT_WITH_ZERO], ids=lambda f: f.name)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_odd_tables_against_the_definition(f: TableFormat, rounding: Rounding) -> None:
    for x in (landmarks(f).double(), landmarks(f).float()):
        some = torch.cat([x[:: len(x) // 300 + 1], torch.tensor([-0.0, 0.0, 0.05, -0.05, 3.75, -7.5, 101.0])]).to(
            x.dtype
        )
        draws = torch.randint(0, 2**32, some.shape, generator=torch.Generator().manual_seed(0))
        for saturation in SATURATIONS:
            for width in (1, 32) if rounding == "stochastic" else (32,):
                expected = [
                    quantize_exactly(
                        value, f, rounding=rounding, saturation=saturation, bits=bits >> (32 - width), random_bits=width
                    )
                    for value, bits in zip(some.tolist(), draws.tolist(), strict=True)
                ]
                if some.dtype is torch.float32:
                    held = [number for number in f.numbers if abs(number) < 2.0**128]
                    expected = [min(max(v, held[0]), held[-1]) if math.isfinite(v) else v for v in expected]
                got = round_to_table(some, f, rounding, saturation, draws, width)
                assert_same(got, torch.tensor(expected, dtype=torch.float64).to(some.dtype), some)


def test_stochastic_counts_exactly() -> None:
    """Every one of 2^N draws: away as often as the fraction says, rounded to even."""
    f, width = table_format("nf4"), 8
    low, high = f.numbers[8], f.numbers[9]
    draws = torch.arange(2**width) << (32 - width)
    for part in (0.0, 1 / 512, 3 / 512, 0.25, 0.7, 511 / 512):
        x = torch.full((2**width,), low + part * (high - low), dtype=torch.float64)
        q = round_to_table(x, f, "stochastic", "finite", draws, width)
        fraction = (Fraction(x[0].item()) - Fraction(low)) / (Fraction(high) - Fraction(low))
        assert int((q == high).sum()) == round(fraction * 2**width)
        assert ((q == high) | (q == low)).all()


def test_overflow_is_what_rounds_past_the_ends() -> None:
    x = torch.tensor([127.0, 127.4, 127.5, 128.0, -128.4, -128.5, -129.0, 1e9, math.inf, math.nan]) / 64
    int8 = table_format("int8")
    expected = {
        "nearest_even": [False, False, True, True, False, False, True, True, False, False],
        "nearest_away": [False, False, True, True, False, True, True, True, False, False],
        "toward_zero": [False, False, False, True, False, False, True, True, False, False],
        "up": [False, True, True, True, False, False, True, True, False, False],
        "down": [False, False, False, True, True, True, True, True, False, False],
        "stochastic": [False, False, False, True, False, False, True, True, False, False],
    }
    for rounding, overflows in expected.items():
        assert table_overflow(x, int8, rounding).tolist() == overflows, rounding  # type: ignore[arg-type]
    # Where nothing says what would come next, everything past the ends is beyond.
    posit8 = table_format("posit8")
    y = torch.tensor([2.0**24, 2.0**24 + 2, -(2.0**24) - 2, 1e-30, 0.0])
    for rounding in ROUNDINGS:
        draws = torch.zeros(5, dtype=torch.int64)
        assert table_overflow(y, posit8, rounding, draws).tolist() == [False, True, True, False, False]


def test_drawn_overflow_agrees_with_drawn_values() -> None:
    f = TableFormat(name="mine", table=(0.0, 1.0, math.nan, -1.0), beyond=(-2.0, 2.0))
    x = torch.full((256,), 1.25)
    draws = torch.arange(256) << 24
    q = round_to_table(x, f, "stochastic", "none", draws, 8)
    over = table_overflow(x, f, "stochastic", draws, 8)
    assert torch.equal(q.isnan(), over)
    assert int(over.sum()) == 64


def test_scales_of_blocks_are_exact_and_saturate() -> None:
    powers = torch.ldexp(torch.ones(255), torch.arange(-127, 128))
    assert torch.equal(quantize(powers, "e8m0fnu", rounding="up"), powers)
    x = torch.tensor([0.0, -1.0, 2.0**-149, 1.5, 3.0, 1.5 * 2.0**127, 1.6 * 2.0**127])
    assert quantize(x, "e8m0fnu").tolist() == [*[2.0**-127] * 3, 2.0, 2.0, *[2.0**127] * 2]
    none = quantize(x, "e8m0fnu", saturation="none")
    assert torch.isnan(none).tolist() == [True, True, True, False, False, False, True]


@pytest.mark.parametrize("name", ["takum8", "takum_linear8"])
def test_float32_keeps_what_it_can_of_wider_tables(name: str) -> None:
    f = table_format(name)
    x = torch.tensor([3e38, math.inf, 1e-42, 1.3])
    q = quantize(x, f)
    last = torch.tensor([number for number in f.numbers if number < 2.0**128][-1])
    assert q[0] == q[1] == last
    assert quantize(x.double(), f)[1] == f.max_finite
    assert_same(q[2:], quantize(x[2:].double(), f).float(), x[2:])


@pytest.mark.parametrize("name", ["takum8", "takum_linear8"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_no_finite_float32_becomes_infinite(name: str, rounding: Rounding) -> None:
    f, largest = table_format(name), torch.finfo(torch.float32).max
    x = torch.tensor([largest, -largest, 2.0**127, -(2.0**127), 2.5e38, -2.5e38])
    draws = torch.tensor([2**32 - 1, 2**32 - 1, 0, 0, 2**32 - 1, 2**31])
    for saturation in SATURATIONS:
        q = round_to_table(x, f, rounding, saturation, draws)
        assert torch.isfinite(q).all()
        assert torch.equal(q.signbit(), x.signbit())
        assert q.abs().min() >= 2.0**100


def test_cast_takes_tables_and_counts() -> None:
    x = torch.tensor([[3.0, -0.01, 0.0, math.nan], [1.0, 0.008, -5.0, 0.5]])
    q, vector = cast(x, "int8", scale=0.5, statistics=True)
    assert q.dtype is torch.bfloat16
    assert vector is not None
    assert q[0, 0] == 127 / 64
    assert q[1, 2] == -2.0


@pytest.mark.parametrize("name", ["posit8", "nf4"])
def test_compiled_is_eager(name: str) -> None:
    f = table_format(name)
    x = landmarks(f)
    draws = torch.randint(0, 2**32, x.shape, generator=torch.Generator().manual_seed(0))
    for rounding in ("nearest_even", "stochastic"):

        @torch.compile(fullgraph=True, backend="aot_eager")
        def both(y: torch.Tensor, bits: torch.Tensor, mode: Rounding = rounding) -> tuple[torch.Tensor, torch.Tensor]:
            return round_to_table(2.0 * y, f, mode, "none", bits), table_overflow(2.0 * y, f, mode, bits)

        q, over = both(x, draws)
        assert_same(q, round_to_table(2.0 * x, f, rounding, "none", draws), x)
        assert torch.equal(over, table_overflow(2.0 * x, f, rounding, draws))


def test_where_scaling_puts_the_largest_element() -> None:
    tables = {name: table_format(name) for name in ("posit8", "takum8", "takum_linear8", "nf4", "int8")}
    assert {name: f.scale_target for name, f in tables.items() if f.scale_target != f.max_finite} == dict.fromkeys(
        ("posit8", "takum8", "takum_linear8"), 8.0
    )
    for wrong in (0.0, -1.0, 2.5, math.inf, math.nan):
        with pytest.raises(AltgradError, match=r"amax_target is above 0 and at most the largest value 2\.0"):
            TableFormat(name="t", table=(0.0, 1.0, 2.0, -1.0), amax_target=wrong)
