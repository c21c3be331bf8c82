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
from altgrad_core.numerics.codes import decode, encode, ordinal, ulp
from altgrad_core.numerics.formats import FloatFormat
from altgrad_core.numerics.modes import SATURATIONS, Saturation
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.registry import get_format
from altgrad_core.testing.strategies import landmarks, tensors

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
# Fractions are slow: of the landmarks of a wide format this many meet the scalar reference.
_SCALAR = 1500


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


def search_table(x: Tensor, format: FloatFormat) -> Tensor:
    """Return the nearest values by looking through a table of all values: exact in float64, and unlike any kernel.

    Saturates; for formats of up to 20 bits.
    """
    table = torch.tensor([format.magnitude(code) for code in range(format.max_code + 1)], dtype=torch.float64)
    size = x.double().abs().clamp(max=format.max_finite)
    above = torch.searchsorted(table, size).clamp(max=format.max_code)
    below = (above - 1).clamp(min=0)
    down, up = size - table[below], table[above] - size
    code = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    value = torch.where(torch.signbit(x), -table[code], table[code])
    if not format.signed:
        value = torch.where(torch.signbit(x), 0.0, value)
    elif not format.has_negative_zero:
        value = torch.where(value == 0, 0.0, value)
    return torch.where(torch.isnan(x), math.nan, value)


class FormatConformance:
    """Subclass it, set ``format``, and pytest finds the tests."""

    format: str | FloatFormat
    """The format, or its name."""

    @property
    def fmt(self) -> FloatFormat:
        """The format under test."""
        found = get_format(self.format)
        assert isinstance(found, FloatFormat)
        return found

    def codes(self) -> Tensor:
        """Return all codes, or for wide formats those of the landmarks."""
        if self.fmt.bits <= _ALL_CODES_BITS:
            return torch.arange(2**self.fmt.bits)
        x = landmarks(self.fmt)
        return encode(x[~torch.isnan(x)], self.fmt, saturation="none")

    def test_constants(self) -> None:
        """The constants follow from the codes."""
        f = self.fmt
        assert f.value(0) == 0.0
        assert f.value(f.max_code) == f.max_finite
        assert f.value(1) == f.min_positive
        assert 0 < f.min_positive <= f.max_finite < f.beyond
        assert 2.0**f.max_exponent <= f.max_finite < 2.0 ** (f.max_exponent + 1)
        assert f.nan_code is None or math.isnan(f.value(f.nan_code))
        assert f.inf_code is None or f.value(f.inf_code) == math.inf
        assert f.has_nan == (f.nan_code is not None)
        if f.has_negative_zero:
            assert math.copysign(1.0, f.value(f.sign_bit)) == -1.0
        held = torch.tensor([f.max_finite, f.min_positive], dtype=torch.float32)
        assert held.tolist() == [f.max_finite, f.min_positive]

    def test_every_code_decodes_to_its_value_and_encodes_back(self) -> None:
        """``decode`` agrees with the scalar definition, ``encode`` inverts it, casts leave values alone."""
        f, codes = self.fmt, self.codes()
        values = decode(codes, f)
        assert_same(values, torch.tensor([f.value(code) for code in codes.tolist()], dtype=torch.float64), codes)
        number = ~torch.isnan(values)
        assert torch.equal(encode(values[number], f, saturation="none"), codes[number])
        if f.nan_code is not None:
            assert (encode(values[~number], f) == f.nan_code).all()
        assert_same(quantize(values, f, saturation="none"), values, values)
        assert torch.isfinite(quantize(values[number], f)).all()

    def test_bfloat16_and_float32_hold_the_values(self) -> None:
        """``fits_bfloat16`` is true exactly when bfloat16 holds every value."""
        values = decode(self.codes(), self.fmt)
        exact = bool(same(values.bfloat16().float(), values).all())
        assert exact == self.fmt.fits_bfloat16

    def test_landmarks_against_the_scalar_reference(self) -> None:
        """Ties, neighbours, thresholds, powers of two, subnormals, specials: as the definition says, in every mode."""
        x = landmarks(self.fmt)
        if len(x) > _SCALAR:
            x = torch.cat([x[:: len(x) // _SCALAR + 1], x[-200:], x[len(x) // 2 - 200 : len(x) // 2]])
        for saturation in SATURATIONS:
            expected = [quantize_exactly(value, self.fmt, saturation=saturation) for value in x.tolist()]
            assert_same(quantize(x, self.fmt, saturation=saturation), torch.tensor(expected, dtype=torch.float64), x)

    def test_landmarks_and_every_bfloat16_against_a_table(self) -> None:
        """All 65,536 bfloat16 inputs and all landmarks give the value that a search through all values finds."""
        if self.fmt.bits > _ALL_CODES_BITS:
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
        f, x = self.fmt, landmarks(self.fmt)
        for saturation in SATURATIONS:
            assert_same(quantize(x.double(), f, saturation=saturation), quantize(x, f, saturation=saturation), x)
        # Just beside a tie, by less than float32 can say.
        some = range(0, f.max_code, f.max_code // 40 + 1)
        tie = torch.tensor([(f.magnitude(c) + f.magnitude(c + 1)) / 2 for c in some], dtype=torch.float64)
        for factor in (1 - 2.0**-50, 1 + 2.0**-50):
            beside = tie * factor
            expected = [quantize_exactly(Fraction(value), f) for value in beside.tolist()]
            assert_same(quantize(beside, f), torch.tensor(expected, dtype=torch.float64), beside)

    @given(st.data())
    @_laws
    def test_idempotent(self, data: st.DataObject) -> None:
        """Casting twice changes nothing, whatever becomes of overflow."""
        x = data.draw(tensors(self.fmt))
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        once = quantize(x, self.fmt, saturation=saturation)
        assert_same(quantize(once, self.fmt, saturation=saturation), once, x)

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
        """Negating the input negates the value; an unsigned format has nothing below zero."""
        x = data.draw(tensors(self.fmt))
        q, mirrored = quantize(x, self.fmt), quantize(-x, self.fmt)
        if not self.fmt.signed:
            assert not (torch.minimum(q, mirrored) < 0).any()
        elif self.fmt.has_negative_zero:
            assert_same(mirrored, -q, x)
        else:
            assert torch.equal(torch.nan_to_num(mirrored), torch.nan_to_num(-q))

    @given(st.data())
    @_laws
    def test_error_is_at_most_half_an_ulp(self, data: st.DataObject) -> None:
        """Within the range, the nearest value is at most half a spacing away; beyond it, the largest is taken."""
        x = data.draw(tensors(self.fmt, finite=True))
        if not self.fmt.signed:
            x = x.abs()
        error = (quantize(x, self.fmt).double() - x.double()).abs()
        within = x.abs() <= self.fmt.max_finite
        assert (error[within] <= 0.5 * ulp(x, self.fmt).double()[within]).all()
        assert (quantize(x, self.fmt).abs()[~within] == self.fmt.max_finite).all()

    @given(st.data())
    @_laws
    def test_decode_of_encode_is_quantize(self, data: st.DataObject) -> None:
        """Codes lose nothing that the cast kept, NaN apart where the format has none."""
        x = data.draw(tensors(self.fmt))
        if not self.fmt.has_nan:
            x = torch.nan_to_num(x, nan=1.0)
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        codes = encode(x, self.fmt, saturation=saturation)
        assert ((codes >= 0) & (codes < 2**self.fmt.bits)).all()
        assert_same(decode(codes, self.fmt), quantize(x, self.fmt, saturation=saturation), x)

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
        """Scaling input and grid by a power of two scales the result, where float32 holds all of it."""
        scale = math.ldexp(1.0, exponent)
        x = data.draw(tensors(self.fmt))
        exact = (x * scale / scale == x) | ~torch.isfinite(x)
        representable = self.fmt.max_exponent + exponent < 128 and self.fmt.min_positive * scale >= 2.0**-126
        x = torch.where(exact & representable, x, torch.zeros_like(x))
        for given_scale in (scale, torch.tensor(scale)):
            assert_same(quantize(x * scale, self.fmt, scale=given_scale), quantize(x, self.fmt) * scale, x)
