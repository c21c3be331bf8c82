"""``FormatConformance``: the laws of a number format and of casts to it, as a class of pytest tests to subclass."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import all_values, decode, encode, neighbours, ordinal, ulp
from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.stochastic import Draw, random_bits
from altgrad_core.testing.strategies import holder, landmarks, tensors

# One test function serves many subclasses, which hypothesis otherwise takes for a mistake.
_laws = settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
# Every code is tried up to this width; of wider formats the codes of the landmarks.
_ALL_CODES_BITS = 16
# Fractions are slow: of the landmarks of a wide format this many meet the scalar reference in the default mode, and
# in each of the others.
_SCALAR, _SCALAR_OTHERS = 1500, 250


def same(a: Tensor, b: Tensor) -> Tensor:
    """Compare elementwise: equal numbers with equal signs (also of zeros), or NaN in both."""
    return (torch.isnan(a) & torch.isnan(b)) | ((a == b) & (torch.signbit(a) == torch.signbit(b)))


def assert_same(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Fail with the first few differing elements and the inputs they came from."""
    bad = ~same(got.double(), expected.double())
    shown = [
        f"{a!r} gave {b!r}, not {c!r}"
        for a, b, c in zip(x[bad][:5].tolist(), got[bad][:5].tolist(), expected[bad][:5].tolist(), strict=True)
    ]
    assert not bad.any(), f"{int(bad.sum())} of {bad.numel()} differ: {'; '.join(shown)}"


def search_table(x: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the nearest values by looking through a list of all values: exact in float64, and unlike any kernel.

    Saturates; for formats of up to 20 bits whose values, like ``x``, are float32 numbers.
    """
    if isinstance(format, TableFormat):
        numbers, codes = format.numbers, torch.tensor(format.number_codes)
    else:
        positive = [format.magnitude(code) for code in range(format.max_code + 1)]
        numbers = (*(-value for value in reversed(positive[1:]) if format.signed), *positive)
        codes = (torch.arange(len(numbers)) - numbers.index(0.0)).abs()
    table = torch.tensor(numbers, dtype=torch.float64)
    y = x.double().clamp(numbers[0], numbers[-1])
    high = torch.searchsorted(table, y.nan_to_num()).clamp(1, len(numbers) - 1)
    low = high - 1
    down, up = y - table[low], table[high] - y
    low_even, high_even = codes[low] % 2 == 0, codes[high] % 2 == 0
    tie_up = torch.where(low_even == high_even, table[high].abs() <= table[low].abs(), high_even)
    value = torch.where((up < down) | ((up == down) & tie_up), table[high], table[low])
    zero = torch.where(torch.signbit(x), -0.0, 0.0) if format.has_negative_zero else torch.zeros(())
    return torch.where(torch.isnan(x), math.nan, torch.where(value == 0, zero.double(), value))


class FormatConformance:
    """Subclass it, set ``format``, and pytest finds the tests."""

    format: str | FloatFormat | TableFormat
    """The format, or its name."""

    @property
    def fmt(self) -> FloatFormat | TableFormat:
        """The format under test."""
        found = get_format(self.format)
        assert isinstance(found, FloatFormat | TableFormat)
        return found

    @property
    def is_odd(self) -> bool:
        """Whether each value, and whether its code is even, is mirrored at zero."""
        if isinstance(self.fmt, FloatFormat):
            return self.fmt.signed
        even = {value: code % 2 == 0 for value, code in zip(self.fmt.numbers, self.fmt.number_codes, strict=True)}
        return all(even.get(-value) == parity for value, parity in even.items())

    def codes(self) -> Tensor:
        """Return all codes, or for wide formats those of the landmarks."""
        if self.fmt.bits <= _ALL_CODES_BITS:
            return torch.arange(2**self.fmt.bits)
        x = landmarks(self.fmt)
        return encode(x[~torch.isnan(x)], self.fmt, saturation="none")

    def test_constants(self) -> None:
        """The constants follow from the codes."""
        f = self.fmt
        values = decode(self.codes(), f).double()
        finite = values[torch.isfinite(values)]
        assert finite.max() == f.max_finite
        assert finite.min() == f.min_finite
        assert finite[finite > 0].min() == f.min_positive
        assert f.signed == (f.min_finite < 0)
        assert f.nan_code is None or math.isnan(f.value(f.nan_code))
        assert f.inf_code is None or f.value(f.inf_code) == math.inf
        assert f.has_nan == (f.nan_code is not None) == bool(torch.isnan(values).any() or f.bits > _ALL_CODES_BITS)
        assert f.has_inf == (f.inf_code is not None) == bool((values == math.inf).any())
        assert f.has_negative_inf == bool((values == -math.inf).any())
        assert f.has_negative_zero == bool(((values == 0) & torch.signbit(values)).any())
        assert f.fits_float32 == bool((finite.float() == finite).all())

    def test_constants_of_floats(self) -> None:
        """Those that only a float format has."""
        f = self.fmt
        if not isinstance(f, FloatFormat):
            pytest.skip("a table has no exponents")
        assert f.value(0) == 0.0
        assert f.value(f.max_code) == f.max_finite
        assert f.value(1) == f.min_positive
        assert 0 < f.min_positive <= f.max_finite < f.overflow_threshold < f.beyond
        assert math.frexp(f.max_finite)[1] - 1 == f.max_exponent

    def test_every_code_decodes_to_its_value_and_encodes_back(self) -> None:
        """``decode`` agrees with the scalar definition, ``encode`` inverts it, casts leave values alone."""
        f, codes = self.fmt, self.codes()
        values = decode(codes, f)
        assert_same(values, torch.tensor([f.value(code) for code in codes.tolist()], dtype=torch.float64), codes)
        number = ~torch.isnan(values)
        assert torch.equal(encode(values[number], f, saturation="none"), codes[number])
        if f.nan_code is not None:
            assert (encode(values[~number], f) == f.nan_code).all()
        for rounding in ROUNDINGS:
            kept = quantize(values, f, rounding=rounding, saturation="none", draw=Draw(seed=1))
            assert_same(kept, values, values)
        assert torch.isfinite(quantize(values[number], f)).all()

    def test_values_are_in_order(self) -> None:
        """``all_values``, ``ordinal`` and ``neighbours`` agree on the order of values."""
        if self.fmt.bits > _ALL_CODES_BITS:
            pytest.skip(f"{self.fmt.bits} bits make too long a list")
        listed, codes = all_values(self.fmt), self.codes()
        values, places = decode(codes, self.fmt).double(), ordinal(codes, self.fmt)
        assert (listed.diff() > 0).all()
        number = ~torch.isnan(values)
        least = int(places[number].min())
        assert torch.equal(listed[places[number] - least], values[number] + 0.0)
        below, above = neighbours(listed, self.fmt)
        assert torch.equal(below[1:].double(), listed[:-1])
        assert torch.equal(above[:-1].double(), listed[1:])
        assert torch.isnan(below[0])
        assert torch.isnan(above[-1])

    def test_bfloat16_and_float32_hold_the_values(self) -> None:
        """``fits_bfloat16`` is true exactly when bfloat16 holds every value."""
        values = decode(self.codes(), self.fmt)
        exact = bool(same(values.bfloat16().to(values.dtype), values).all())
        assert exact == self.fmt.fits_bfloat16

    def some_landmarks(self, count: int) -> Tensor:
        """Return about so many of the landmarks, those at the ends of the format and of the dtype among them."""
        x = landmarks(self.fmt)
        if len(x) <= count:
            return x
        ends, half = count // 10, len(x) // 2
        return torch.cat([x[:: len(x) // count + 1], x[-ends:], x[half - ends : half]])

    @pytest.mark.parametrize("rounding", ROUNDINGS)
    def test_landmarks_against_the_scalar_reference(self, rounding: Rounding) -> None:
        """Ties, neighbours, thresholds, powers of two, subnormals, specials: as the definition says, in every mode."""
        x = self.some_landmarks(_SCALAR if rounding == "nearest_even" else _SCALAR_OTHERS)
        draw, width = Draw(seed=1), 6
        bits = (random_bits(draw, x.shape) >> (32 - width)).tolist()
        for saturation in SATURATIONS:
            expected = [
                quantize_exactly(
                    value, self.fmt, rounding=rounding, saturation=saturation, bits=number, random_bits=width
                )
                for value, number in zip(x.tolist(), bits, strict=True)
            ]
            got = quantize(x, self.fmt, rounding=rounding, saturation=saturation, draw=draw, random_bits=width)
            assert_same(got, torch.tensor(expected, dtype=torch.float64), x)

    def test_landmarks_and_every_bfloat16_against_a_table(self) -> None:
        """All 65,536 bfloat16 inputs and all landmarks give the value that a search through all values finds."""
        if self.fmt.bits > _ALL_CODES_BITS or not self.fmt.fits_float32:
            pytest.skip(f"{self.fmt.bits} bits make too large a table; the scalar reference covers the landmarks")
        every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        marks = landmarks(self.fmt)
        assert_same(quantize(marks, self.fmt), search_table(marks, self.fmt), marks)
        expected = search_table(every.float(), self.fmt)
        got, _ = cast(every, self.fmt, dtype=torch.float32)
        assert_same(got, expected, every)
        if self.fmt.fits_bfloat16:
            assert_same(quantize(every, self.fmt), expected, every)

    def test_dtypes_agree(self) -> None:
        """float64 and chunked or plain float32 arithmetic give the same values; float64 is rounded once."""
        f, x = self.fmt, landmarks(self.fmt).float()
        for saturation in SATURATIONS:
            wide = quantize(x.double(), f, saturation=saturation)
            if isinstance(f, TableFormat):  # float32 makes the last value that it holds of those beyond its range
                held = [number for number in f.numbers if abs(number) < 2.0**128]
                wide = torch.where(torch.isfinite(wide), wide.clamp(held[0], held[-1]), wide)
            assert_same(wide.float(), quantize(x, f, saturation=saturation), x)
        # Just beside a tie, by less than float32 can say.
        if isinstance(f, TableFormat):
            ends = list(zip(f.numbers[:-1], f.numbers[1:], strict=True))
        else:
            some = range(0, f.max_code, f.max_code // 40 + 1)
            ends = [(f.magnitude(code), f.magnitude(code + 1)) for code in some]
        tie = torch.tensor([low / 2 + high / 2 for low, high in ends], dtype=torch.float64)
        for factor in (1 - 2.0**-50, 1 + 2.0**-50):
            beside = tie * factor
            expected = [quantize_exactly(Fraction(value), f) for value in beside.tolist()]
            assert_same(quantize(beside, f), torch.tensor(expected, dtype=torch.float64), beside)

    @given(st.data())
    @_laws
    def test_idempotent(self, data: st.DataObject) -> None:
        """Casting twice changes nothing, however it is rounded and whatever becomes of overflow."""
        x = data.draw(tensors(self.fmt))
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        rounding: Rounding = data.draw(st.sampled_from(ROUNDINGS))
        once = quantize(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        again = quantize(once, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=2))
        assert_same(again, once, x)

    @given(st.data())
    @_laws
    def test_monotone_and_in_code_order(self, data: st.DataObject) -> None:
        """A larger input never gives a smaller value, nor an earlier place in the order of codes."""
        x = data.draw(tensors(self.fmt)).flatten()
        x = x[~torch.isnan(x)].sort().values
        q = quantize(x, self.fmt)
        assert (q.diff() >= 0).all()
        places = ordinal(encode(q, self.fmt), self.fmt)
        assert (places.diff() >= 0).all()
        assert ((places.diff() == 0) == (q.diff() == 0)).all()

    @given(st.data())
    @_laws
    def test_odd(self, data: st.DataObject) -> None:
        """Negating the input negates the value, where values are mirrored; an unsigned format has none below zero."""
        x = data.draw(tensors(self.fmt))
        q, mirrored = quantize(x, self.fmt), quantize(-x, self.fmt)
        if not self.fmt.signed:
            assert not (torch.minimum(q, mirrored) < 0).any()
        elif self.is_odd:
            assert_same(mirrored, -q if self.fmt.has_negative_zero else -q + 0.0, x)

    @given(st.data())
    @_laws
    def test_error_is_at_most_half_an_ulp(self, data: st.DataObject) -> None:
        """Within the range, the nearest value is at most half a spacing away; beyond it, the largest is taken."""
        f, x = self.fmt, data.draw(tensors(self.fmt, finite=True))
        q = quantize(x, f)
        error = (q.double() - x.double()).abs()
        above, below = x.double() > f.max_finite, x.double() < f.min_finite
        within = ~(above | below)
        assert (error[within] <= 0.5 * ulp(x, f).double()[within]).all()
        assert (q[above] == f.max_finite).all()
        assert (q[below] == f.min_finite).all()

    @given(st.data())
    @_laws
    def test_decode_of_encode_is_quantize(self, data: st.DataObject) -> None:
        """Codes lose nothing that the cast kept, NaN apart where the format has none."""
        x = data.draw(tensors(self.fmt))
        if not self.fmt.has_nan:
            x = torch.nan_to_num(x, nan=1.0)
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        rounding: Rounding = data.draw(st.sampled_from(ROUNDINGS))
        codes = encode(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        assert ((codes >= 0) & (codes < 2**self.fmt.bits)).all()
        expected = quantize(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        assert_same(decode(codes, self.fmt), expected, x)

    @given(st.data())
    @_laws
    def test_shape_stride_and_input_are_respected(self, data: st.DataObject) -> None:
        """Any shape and stride gives each element its value; the input stays as it was."""
        x = data.draw(tensors(self.fmt))
        before = x.clone()
        q = quantize(x, self.fmt)
        assert q.shape == x.shape
        assert q.dtype == x.dtype
        assert_same(x, before, x)
        strided = torch.stack([x, x], dim=-1)[..., 0]
        turned = x.movedim(0, -1) if x.dim() else x
        assert_same(quantize(strided, self.fmt), q, x)
        assert_same(quantize(turned, self.fmt), q.movedim(0, -1) if x.dim() else q, turned)

    @given(st.data(), st.integers(-20, 20))
    @_laws
    def test_a_power_of_two_scales_the_grid(self, data: st.DataObject, exponent: int) -> None:
        """Scaling input and grid by a power of two scales the result, where the dtype holds all of it."""
        scale, info = math.ldexp(1.0, exponent), torch.finfo(holder(self.fmt))
        x = data.draw(tensors(self.fmt))
        exact = (x * scale / scale == x) | ~torch.isfinite(x)
        ends = max(self.fmt.max_finite, -self.fmt.min_finite)
        representable = scale <= info.max / ends and self.fmt.min_positive * scale >= info.smallest_normal
        x = torch.where(exact & representable, x, torch.zeros_like(x))
        for given_scale in (scale, torch.tensor(scale)):
            assert_same(quantize(x * scale, self.fmt, scale=given_scale), quantize(x, self.fmt) * scale, x)
