"""``FormatConformance``: the laws of a number format and of casts to it, as a class of pytest tests to subclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

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
from altgrad_core.testing.counting import CountedSuite
from altgrad_core.testing.exact import assert_holds, assert_same, same, search_table, values_around
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


CLAUSES = {
    "odd": "negating the input negates the value, where the values are mirrored at zero",
    "faithful": "a cast of the format's own gives one of the two values around the number",
}
"""What ``cannot`` may switch off, for a format with a ``nearest`` of its own; everything else holds for every format."""


class FormatConformance(CountedSuite):
    """Subclass it, set ``format``, and pytest finds the tests."""

    clauses: ClassVar[Mapping[str, str]] = CLAUSES
    format: str | FloatFormat | TableFormat
    """The format, or its name."""

    @classmethod
    def _look_up(cls) -> None:
        if "format" in vars(cls):
            get_format(cls.format)

    def definition(self, x: float) -> float:
        """Return what a format with a ``nearest`` of its own makes of a number between its ends, from its definition.

        One number at a time, slowly, and not by ``nearest``. Without it the checks that need it are skipped, and say so.
        """
        raise NotImplementedError

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
        if self.fmt.nearest is not None:  # which need not care for codes
            even = dict.fromkeys(even, True)
        return all(even.get(-value) == parity for value, parity in even.items())

    @property
    def rounds_itself(self) -> bool:
        """Whether the format has a ``nearest`` of its own."""
        return isinstance(self.fmt, TableFormat) and self.fmt.nearest is not None

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
        wide = f.bits > _ALL_CODES_BITS
        said_and_found = {
            "max_finite": (f.max_finite, float(finite.max())),
            "min_finite": (f.min_finite, float(finite.min())),
            "min_positive": (f.min_positive, float(finite[finite > 0].min())),
            "signed": (f.signed, f.min_finite < 0),
            "has_nan": (f.has_nan, f.has_nan if wide else bool(torch.isnan(values).any())),
            "nan_code": (f.nan_code is not None, f.has_nan),
            "has_inf": (f.has_inf, bool((values == math.inf).any())),
            "inf_code": (f.inf_code is not None, f.has_inf),
            "has_negative_inf": (f.has_negative_inf, bool((values == -math.inf).any())),
            "has_negative_zero": (f.has_negative_zero, bool(((values == 0) & torch.signbit(values)).any())),
            "fits_float32": (f.fits_float32, bool((finite.float() == finite).all())),
            "value(nan_code)": (f.nan_code is None or math.isnan(f.value(f.nan_code)), True),
            "value(inf_code)": (f.inf_code is None or f.value(f.inf_code) == math.inf, True),
        }
        self._agree(said_and_found)

    def test_constants_of_floats(self) -> None:
        """Those that only a float format has."""
        f = self.fmt
        if not isinstance(f, FloatFormat):
            self.switch_off("a table has no exponents")
        order = 0 < f.min_positive <= f.max_finite < f.overflow_threshold < f.beyond
        said_and_found = {
            "value(0)": (f.value(0), 0.0),
            "value(max_code)": (f.value(f.max_code), f.max_finite),
            "value(1)": (f.value(1), f.min_positive),
            "max_exponent": (f.max_exponent, math.frexp(f.max_finite)[1] - 1),
            "beyond": (f.beyond, f.magnitude(f.max_code + 1) if math.isfinite(f.beyond) else math.inf),
            "the order of min_positive, max_finite, overflow_threshold and beyond": (order, True),
        }
        self._agree(said_and_found)

    def _agree(self, said_and_found: Mapping[str, tuple[object, object]]) -> None:
        for what, (said, found) in said_and_found.items():
            assert said == found, f"{what} of '{self.fmt.name}' is {said!r}, expected {found!r}"
            self.count += 1

    def test_every_code_decodes_to_its_value_and_encodes_back(self) -> None:
        """``decode`` agrees with the scalar definition, ``encode`` inverts it, casts leave values alone."""
        f, codes = self.fmt, self.codes()
        values = decode(codes, f)
        self.same(values, torch.tensor([f.value(code) for code in codes.tolist()], dtype=torch.float64), codes)
        number = ~torch.isnan(values)
        self.same(encode(values[number], f, saturation="none"), codes[number], values[number])
        if f.nan_code is not None:
            found = encode(values[~number], f)
            self.same(found, torch.full_like(found, f.nan_code), values[~number])
        for rounding in ROUNDINGS:
            kept = quantize(values, f, rounding=rounding, saturation="none", draw=Draw(seed=1))
            self.same(kept, values, values)
        q = quantize(values[number], f)
        self.holds(torch.isfinite(q), "a number stays one", values[number], q)

    def test_values_are_in_order(self) -> None:
        """``all_values``, ``ordinal`` and ``neighbours`` agree on the order of values."""
        if self.fmt.bits > _ALL_CODES_BITS:
            self.switch_off(f"{self.fmt.bits} bits make too long a list")
        listed, codes = all_values(self.fmt), self.codes()
        values, places = decode(codes, self.fmt).double(), ordinal(codes, self.fmt)
        assert (listed.diff() > 0).all(), "all_values() is not in ascending order"
        number = ~torch.isnan(values)
        least = int(places[number].min())
        self.same(listed[places[number] - least], values[number] + 0.0, codes[number])
        below, above = neighbours(listed, self.fmt)
        self.same(below[1:], listed[:-1], listed[1:])
        self.same(above[:-1], listed[1:], listed[:-1])
        assert torch.isnan(below[0])
        assert torch.isnan(above[-1])

    def test_bfloat16_and_float32_hold_the_values(self) -> None:
        """``fits_bfloat16`` is true exactly when bfloat16 holds every value."""
        values = decode(self.codes(), self.fmt)
        exact = bool(same(values.bfloat16().to(values.dtype), values).all())
        assert exact == self.fmt.fits_bfloat16, (
            f"fits_bfloat16 of '{self.fmt.name}' is {not exact}, the values say {exact}"
        )
        self.count += values.numel()

    def some_landmarks(self, count: int) -> Tensor:
        """Return about so many of the landmarks, those at the ends of the format and of the dtype among them."""
        x = landmarks(self.fmt)
        if len(x) <= count:
            return x
        ends, half = count // 10, len(x) // 2
        return torch.cat([x[:: len(x) // count + 1], x[-ends:], x[half - ends : half]])

    def inputs(self, *, finite: bool = False, strided: bool = False) -> st.SearchStrategy[Tensor]:
        """Return a strategy: all the landmarks (of wide formats some), and tensors of every shape."""
        marks = self.some_landmarks(_SCALAR)
        marks = marks[torch.isfinite(marks)] if finite else marks
        return st.just(marks) | tensors(self.fmt, finite=finite, strided=strided)

    @pytest.mark.parametrize("rounding", ROUNDINGS)
    def test_landmarks_against_the_scalar_reference(self, rounding: Rounding) -> None:
        """Ties, neighbours, thresholds, powers of two, subnormals, specials: as the definition says, in every mode."""
        x = self.some_landmarks(_SCALAR if rounding == "nearest_even" else _SCALAR_OTHERS)
        if isinstance(self.fmt, TableFormat) and self.fmt.rounds_itself(rounding):
            self._against_the_definition(x)
            return
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
            self.same(got, torch.tensor(expected, dtype=torch.float64), x)

    def _against_the_definition(self, x: Tensor) -> None:
        if type(self).definition is FormatConformance.definition:
            self.switch_off("the format rounds to nearest in its own way, and definition() is not overridden")
        x = x[(x >= self.fmt.min_finite) & (x <= self.fmt.max_finite)]
        expected = torch.tensor([self.definition(value) for value in x.tolist()], dtype=torch.float64)
        self.same(quantize(x, self.fmt) + 0.0, expected + 0.0, x)  # the signs of zeros are not its business

    def test_landmarks_and_every_bfloat16_against_a_table(self) -> None:
        """All 65,536 bfloat16 inputs and all landmarks give the value that a search through all values finds.

        Of a format that rounds in its own way, one of the two values around.
        """
        if self.fmt.bits > _ALL_CODES_BITS or not self.fmt.fits_float32:
            self.switch_off(f"{self.fmt.bits} bits make too large a table; the scalar reference covers the landmarks")
        if self.rounds_itself:
            self.needs("faithful")
        every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        marks = landmarks(self.fmt)
        got, _ = cast(every, self.fmt, dtype=torch.float32)
        if self.rounds_itself:
            self._one_of_two(marks, quantize(marks, self.fmt))
            self._one_of_two(every.float(), got)
            return
        self.same(quantize(marks, self.fmt), search_table(marks, self.fmt), marks)
        expected = search_table(every.float(), self.fmt)
        self.same(got, expected, every)
        if self.fmt.fits_bfloat16:
            self.same(quantize(every, self.fmt), expected, every)

    def _one_of_two(self, x: Tensor, q: Tensor) -> None:
        y = x.double().clamp(self.fmt.min_finite, self.fmt.max_finite)
        low, high = values_around(y.nan_to_num(), self.fmt)
        kept = torch.isnan(x) & torch.isnan(q)
        self.holds(kept | (q == low) | (q == high), "a cast gives one of the two values around a number", x, q)

    def test_dtypes_agree(self) -> None:
        """float64 and chunked or plain float32 arithmetic give the same values; float64 is rounded once."""
        f, x = self.fmt, landmarks(self.fmt).float()
        for saturation in SATURATIONS:
            wide = quantize(x.double(), f, saturation=saturation)
            if isinstance(f, TableFormat):  # float32 makes the last value that it holds of those beyond its range
                held = [number for number in f.numbers if abs(number) < 2.0**128]
                wide = torch.where(torch.isfinite(wide), wide.clamp(held[0], held[-1]), wide)
            self.same(wide.float(), quantize(x, f, saturation=saturation), x)
        if self.rounds_itself:
            return  # what a tie is, it alone knows
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
            self.same(quantize(beside, f), torch.tensor(expected, dtype=torch.float64), beside)

    @given(st.data())
    @_laws
    def test_idempotent(self, data: st.DataObject) -> None:
        """Casting twice changes nothing, however it is rounded and whatever becomes of overflow."""
        x = data.draw(self.inputs())
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        rounding: Rounding = data.draw(st.sampled_from(ROUNDINGS))
        once = quantize(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        again = quantize(once, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=2))
        self.same(again, once, x)

    @given(st.data())
    @_laws
    def test_monotone_and_in_code_order(self, data: st.DataObject) -> None:
        """A larger input never gives a smaller value, nor an earlier place in the order of codes."""
        x = data.draw(self.inputs()).flatten()
        x = x[~torch.isnan(x)].sort().values
        q = quantize(x, self.fmt)
        self.holds(q.diff() >= 0, "a larger number gives no smaller value", x[1:], x[:-1], q[1:], q[:-1])
        places = ordinal(encode(q, self.fmt), self.fmt)
        self.holds(places.diff() >= 0, "the places of codes follow the values", x[1:], q[1:], places[1:])
        self.holds((places.diff() == 0) == (q.diff() == 0), "values have a place each", x[1:], q[1:], places[1:])

    @given(st.data())
    @_laws
    def test_odd(self, data: st.DataObject) -> None:
        """Negating the input negates the value, where values are mirrored; an unsigned format has none below zero."""
        self.needs("odd")
        if self.fmt.signed and not self.is_odd:
            self.switch_off("the values, or which of their codes are even, are not mirrored at zero")
        x = data.draw(self.inputs())
        q, mirrored = quantize(x, self.fmt), quantize(-x, self.fmt)
        if not self.fmt.signed:
            self.holds(~(torch.minimum(q, mirrored) < 0), "an unsigned format has no value below zero", x, q, mirrored)
        else:
            self.same(mirrored, -q if self.fmt.has_negative_zero else -q + 0.0, x)

    @given(st.data())
    @_laws
    def test_error_is_at_most_half_an_ulp(self, data: st.DataObject) -> None:
        """Within the range, the nearest value is at most half a spacing away; beyond it, the largest is taken.

        Of a format that rounds in its own way, one of the two values around.
        """
        f, x = self.fmt, data.draw(self.inputs(finite=True))
        q = quantize(x, f)
        error = (q.double() - x.double()).abs()
        above, below = x.double() > f.max_finite, x.double() < f.min_finite
        within = ~(above | below)
        if not self.rounds_itself:
            spacing = ulp(x, f).double()
            self.holds((error <= 0.5 * spacing) | ~within, "the error is at most half an ulp", x, q, spacing)
        elif "faithful" not in self.cannot:
            self._one_of_two(x, q)
        self.holds((q == f.max_finite) | ~above, "beyond the largest value it is taken", x, q)
        self.holds((q == f.min_finite) | ~below, "below the lowest value it is taken", x, q)

    @given(st.data())
    @_laws
    def test_decode_of_encode_is_quantize(self, data: st.DataObject) -> None:
        """Codes lose nothing that the cast kept, NaN apart where the format has none."""
        x = data.draw(self.inputs())
        if not self.fmt.has_nan:
            x = torch.nan_to_num(x, nan=1.0)
        saturation: Saturation = data.draw(st.sampled_from(SATURATIONS))
        rounding: Rounding = data.draw(st.sampled_from(ROUNDINGS))
        codes = encode(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        self.holds((codes >= 0) & (codes < 2**self.fmt.bits), f"a code is 0 to {2**self.fmt.bits - 1}", x, codes)
        expected = quantize(x, self.fmt, rounding=rounding, saturation=saturation, draw=Draw(seed=1))
        self.same(decode(codes, self.fmt), expected, x)

    @given(st.data())
    @_laws
    def test_shape_stride_and_input_are_respected(self, data: st.DataObject) -> None:
        """Any shape and stride gives each element its value; the input stays as it was."""
        x = data.draw(self.inputs(strided=True))
        before = x.clone()
        q = quantize(x, self.fmt)
        assert (q.shape, q.dtype) == (x.shape, x.dtype), f"{x.shape} of {x.dtype} became {q.shape} of {q.dtype}"
        self.same(x, before, before)
        self.same(q, quantize(before.contiguous(), self.fmt), before)
        strided = torch.stack([x, x], dim=-1)[..., 0]
        turned = x.movedim(0, -1) if x.dim() else x
        self.same(quantize(strided, self.fmt), q, x)
        self.same(quantize(turned, self.fmt), q.movedim(0, -1) if x.dim() else q, turned)

    def test_each_element_by_itself(self) -> None:
        """A value depends on its number alone: not on what is beside it, on the order, on the size, on what came before.

        Nor does a cast draw random numbers, which would change all others of a training.
        """
        generator = torch.random.get_rng_state()
        x = self.some_landmarks(_SCALAR)
        q = quantize(x, self.fmt)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        self.same(quantize(x[order], self.fmt), q[order], x[order])
        self.same(torch.cat([quantize(part, self.fmt) for part in torch.split(x, 97)]), q, x)
        for element, value in zip(x[order[:20]], q[order[:20]], strict=True):
            self.same(quantize(element, self.fmt), value, element)
        for columns in (2, 16, 128):
            matrix, values = (some[: len(x) // columns * columns].view(-1, columns) for some in (x[order], q[order]))
            self.same(quantize(matrix, self.fmt), values, matrix)
            self.same(quantize(matrix.t(), self.fmt), values.t(), matrix.t())
        for times in (100, 1000) if self.rounds_itself else (100,):
            self.same(quantize(x.repeat(times, 1), self.fmt), q.repeat(times, 1), x.repeat(times, 1))
            self.same(quantize(x.repeat(times), self.fmt), q.repeat(times), x.repeat(times))
        self.same(quantize(x, self.fmt), q, x)
        assert torch.equal(torch.random.get_rng_state(), generator), (
            "the cast has drawn random numbers, or set their seed"
        )

    def test_on_every_device(self) -> None:
        """A cast of the format's own asks for no number of a tensor: an accelerator would wait, a compiler stop."""
        nearest = self.fmt.nearest if isinstance(self.fmt, TableFormat) else None
        if nearest is None:
            self.switch_off("its casts are AltGrad's own")
        for shape in ((0,), (7,), (3, 4)):  # not 0-d: torch itself reads an index of one number
            for dtype in (torch.float32, torch.float64):
                x = torch.empty(shape, dtype=dtype, device="meta")  # a device without numbers
                try:
                    q = nearest(x)
                except Exception as error:
                    raise AssertionError(f"nearest() fails on the device 'meta': {error}") from error
                assert q.device == x.device, f"nearest() returns a tensor on {q.device}, its argument is on {x.device}"
                self.count += 1

    def test_nan_stays_nan_and_nothing_else_becomes_one(self) -> None:
        """NaN is never turned into a number in silence, in no mode; and a cast that saturates makes none of a number."""
        x = self.some_landmarks(_SCALAR)
        for rounding in ROUNDINGS:
            q = quantize(x, self.fmt, rounding=rounding, draw=Draw(seed=1))
            self.holds(torch.isnan(q) == torch.isnan(x), f"{rounding}: NaN stays NaN, and a number one", x, q)

    @given(st.data(), st.integers(-20, 20))
    @_laws
    def test_a_power_of_two_scales_the_grid(self, data: st.DataObject, exponent: int) -> None:
        """Scaling input and grid by a power of two scales the result, where the dtype holds all of it."""
        scale, info = math.ldexp(1.0, exponent), torch.finfo(holder(self.fmt))
        x = data.draw(self.inputs())
        exact = (x * scale / scale == x) | ~torch.isfinite(x)
        ends = max(self.fmt.max_finite, -self.fmt.min_finite)
        representable = scale <= info.max / ends and self.fmt.min_positive * scale >= info.smallest_normal
        x = torch.where(exact & representable, x, torch.zeros_like(x))
        for given_scale in (scale, torch.tensor(scale)):
            self.same(quantize(x * scale, self.fmt, scale=given_scale), quantize(x, self.fmt) * scale, x)

    def same(self, got: Tensor, expected: Tensor, x: Tensor) -> None:
        """Check that each element is the same number, and count them."""
        assert_same(got, expected, x)
        self.count += x.numel()

    def holds(self, law: Tensor, what: str, x: Tensor, *results: Tensor) -> None:
        """Check that a law holds for each element, and count them."""
        assert_holds(law, what, x, *results)
        self.count += law.numel()
