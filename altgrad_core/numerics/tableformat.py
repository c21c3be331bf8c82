"""``TableFormat``: any set of values, one for each code. Nothing here imports torch.

For what no rule of exponents and mantissas gives: posits, takums, NF4, two's complement, a format of your own. A cast
takes the nearest value of the table, and on a tie the one with the even code (if that does not decide, the smaller in
magnitude, then the greater). A table with a ``nearest`` of its own has another idea of what is near, such as a logarithmic
format, which rounds the logarithm.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.format import Format

if TYPE_CHECKING:
    from torch import Tensor

_MAX_BITS = 16


def _floats(table: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in table)


def _pair(ends: Iterable[float] | None) -> tuple[float, float] | None:
    if ends is None:
        return None
    low, high = ends
    return float(low), float(high)


@attrs.frozen(kw_only=True)
class TableFormat(Format):
    """The values of all codes, in any order. Raises ``AltgradError`` for a table that is none."""

    table: tuple[float, ...] = attrs.field(converter=_floats, repr=False, hash=False)
    """Value of each code, 2^bits of them: numbers, each once, infinities, any number of NaNs; -0.0 beside 0.0."""
    beyond: tuple[float, float] | None = attrs.field(default=None, converter=_pair)
    """What would come below the lowest and above the highest number: rounding to it, or past it, is overflow. None:
    every number beyond the lowest and the highest is overflow."""
    amax_target: float | None = None
    """Magnitude that scaling by amax puts the largest element at, for tables that are densest far below their largest
    value; None: the largest value."""
    nearest: Callable[[Tensor], Tensor] | None = attrs.field(default=None, repr=False)
    """A cast of the format's own: takes numbers between ``min_finite`` and ``max_finite`` (float32 or float64, any shape)
    and returns for each, whatever is beside it, a value of the table, in the same shape and dtype. It stands for
    ``nearest_even``; the other roundings, NaN, -0 and what lies beyond the ends stay the table's. Tensor operations only,
    so that it compiles, and on every device. None: the nearest value."""

    # Derived once: a cast asks for some of it, and a tracing compiler cannot search a table.
    numbers: tuple[float, ...] = attrs.field(init=False, eq=False, repr=False)
    """The finite values, ascending, zero once."""
    number_codes: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    """The code of each of ``numbers``, that of +0 for zero."""
    constants: str = attrs.field(init=False, eq=False, repr=False)
    """``table`` and ``beyond`` as text, ``0.0 1.0;-1.0 2.0``, from which ``altgrad_core.numerics.tables`` derives what a
    cast needs: see ``read_constants``."""
    target: str = attrs.field(init=False, eq=False, repr=False)
    """``scale_target`` as text, for the compiler: see ``altgrad_core.numerics.kernel.Grid``."""
    min_finite: float = attrs.field(init=False, eq=False, repr=False)
    """Lowest finite value."""
    max_finite: float = attrs.field(init=False, eq=False, repr=False)
    """Largest finite value."""
    min_positive: float = attrs.field(init=False, eq=False, repr=False)
    """Smallest value above zero."""
    inf_code: int | None = attrs.field(init=False, eq=False, repr=False)
    """Code of +Inf, None when the table has none."""
    nan_code: int | None = attrs.field(init=False, eq=False, repr=False)
    """The first code of a NaN, None when there is none."""
    has_negative_inf: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether the table has -Inf."""
    has_negative_zero: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether -0 has a code."""
    fits_bfloat16: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether every finite value is exactly a bfloat16 value."""
    fits_float32: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether every finite value is exactly a float32 value."""

    def __attrs_post_init__(self) -> None:
        self._check()
        codes = {value: code for code, value in enumerate(self.table) if is_number(value)}
        numbers = tuple(sorted(codes))
        if len(numbers) < 2 or numbers[-1] <= 0:
            raise AltgradError(f"The table of format '{self.name}' needs two finite values, one of them above zero.")
        put = object.__setattr__
        put(self, "numbers", numbers)
        put(self, "number_codes", tuple(codes[value] for value in numbers))
        put(self, "min_finite", numbers[0])
        put(self, "max_finite", numbers[-1])
        put(self, "min_positive", next(value for value in numbers if value > 0))
        put(self, "inf_code", self.table.index(math.inf) if math.inf in self.table else None)
        put(self, "nan_code", next((code for code, value in enumerate(self.table) if math.isnan(value)), None))
        put(self, "has_negative_inf", -math.inf in self.table)
        put(self, "has_negative_zero", any(is_negative_zero(value) for value in self.table))
        put(self, "fits_bfloat16", all(_significand_fits(value, 8, -133) for value in numbers))
        put(self, "fits_float32", all(_significand_fits(value, 24, -149) for value in numbers))
        if self.beyond is not None and not (
            -math.inf < self.beyond[0] < self.min_finite and self.max_finite < self.beyond[1] < math.inf
        ):
            raise AltgradError(
                f"Format '{self.name}': beyond is a number below {self.min_finite!r} and one above "
                f"{self.max_finite!r}, got {self.beyond!r}."
            )
        if self.amax_target is not None and not 0 < self.amax_target <= self.max_finite:
            raise AltgradError(
                f"Format '{self.name}': amax_target is above 0 and at most the largest value {self.max_finite!r}, got "
                f"{self.amax_target!r}."
            )
        table, ends = (" ".join(repr(value) for value in values) for values in (self.table, self.beyond or ()))
        put(self, "constants", f"{table};{ends}")
        put(self, "target", repr(self.scale_target))

    def _check(self) -> None:
        size, name = len(self.table), self.name
        if size < 2 or size & (size - 1) or size > 2**_MAX_BITS:
            raise AltgradError(
                f"The table of format '{name}' has a value for each code: 2^bits of them, up to {_MAX_BITS} bits; got "
                f"{size}. Fill up with NaN what means nothing."
            )
        seen: dict[bytes, int] = {}
        for code, value in enumerate(self.table):
            first = seen.setdefault(struct.pack("d", value), code)
            if first != code and not math.isnan(value):
                raise AltgradError(
                    f"The table of format '{name}' has {value!r} at code {first} and at code {code}: a value has one code."
                )
        if struct.pack("d", -0.0) in seen and struct.pack("d", 0.0) not in seen:
            raise AltgradError(f"The table of format '{name}' has -0.0 but not 0.0.")

    def rounds_itself(self, rounding: str) -> bool:
        """Tell whether ``nearest`` does this rounding."""
        return self.nearest is not None and rounding == "nearest_even"

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return len(self.table).bit_length() - 1

    @property
    def signed(self) -> bool:
        """Whether there are values below zero."""
        return self.numbers[0] < 0

    @property
    def scale_target(self) -> float:
        """``amax_target``, or the largest finite value."""
        return self.max_finite if self.amax_target is None else self.amax_target

    @property
    def has_inf(self) -> bool:
        """Whether the table has +Inf."""
        return self.inf_code is not None

    @property
    def has_nan(self) -> bool:
        """Whether the table has a NaN."""
        return self.nan_code is not None

    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``; raises ``ValueError`` outside it."""
        if not 0 <= code < len(self.table):
            raise ValueError(f"{self.name} has codes 0 to {len(self.table) - 1}, got {code}")
        return self.table[code]


def read_constants(constants: str) -> tuple[list[float], list[float]]:
    """Return the table and the two numbers of ``beyond`` (none for None) that ``TableFormat.constants`` says."""
    table, _, ends = constants.partition(";")
    return [float(word) for word in table.split()], [float(word) for word in ends.split()]


def is_number(value: float) -> bool:
    """Whether a value counts among the finite ones; -0.0 does not, beside 0.0."""
    return math.isfinite(value) and not is_negative_zero(value)


def is_negative_zero(value: float) -> bool:
    """Whether a value is -0.0."""
    return value == 0 and math.copysign(1.0, value) < 0


def _significand_fits(value: float, bits: int, smallest: int) -> bool:
    """Whether a float with so many significant bits, its last unit at least 2^smallest, and under 2^128 holds it."""
    exponent = math.frexp(value)[1]
    scaled = math.ldexp(value, -max(exponent - bits, smallest))
    return abs(value) < 2.0**128 and scaled == int(scaled)
