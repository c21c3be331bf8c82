"""``TableFormat``: any set of values, one for each code. Nothing here imports torch.

For what no rule of exponents and mantissas gives: posits, takums, NF4, two's complement, a format of your own. A cast
takes the nearest value of the table, and on a tie the one with the even code (if that does not decide, the smaller in
magnitude, then the greater).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.format import Format

_MAX_BITS = 16


def _floats(table: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in table)


@attrs.frozen(kw_only=True)
class TableFormat(Format):
    """The values of all codes, in any order. Raises ``AltgradError`` for a table that is none."""

    table: tuple[float, ...] = attrs.field(converter=_floats, repr=False, hash=False)
    """Value of each code, 2^bits of them: numbers, each once, infinities, any number of NaNs; -0.0 beside 0.0."""
    beyond: tuple[float, float] | None = None
    """What would come below the lowest and above the highest number: rounding to it, or past it, is overflow. None:
    every number beyond the lowest and the highest is overflow."""
    amax_target: float | None = None
    """Magnitude that scaling by amax puts the largest element at, for tables that are densest far below their largest
    value; None: the largest value."""

    # Derived once.
    numbers: tuple[float, ...] = attrs.field(init=False, eq=False, repr=False)
    """The finite values, ascending, zero once."""
    number_codes: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    """The code of each of ``numbers``, that of +0 for zero."""
    constants: str = attrs.field(init=False, eq=False, repr=False)
    """``table`` and ``beyond`` as text, from which ``altgrad_core.numerics.tables`` derives what a cast needs."""

    def __attrs_post_init__(self) -> None:
        self._check()
        numbers = {value: code for code, value in enumerate(self.table) if is_number(value)}
        put = object.__setattr__
        put(self, "numbers", tuple(sorted(numbers)))
        put(self, "number_codes", tuple(numbers[value] for value in sorted(numbers)))
        if len(self.numbers) < 2 or self.max_finite <= 0:
            raise AltgradError(f"The table of format '{self.name}' needs two finite values, one of them above zero.")
        if self.beyond is not None and not (self.beyond[0] < self.numbers[0] and self.beyond[1] > self.max_finite):
            raise AltgradError(
                f"Format '{self.name}': beyond is a number below {self.numbers[0]!r} and one above "
                f"{self.max_finite!r}, got {self.beyond!r}."
            )
        if self.amax_target is not None and not 0 < self.amax_target <= self.max_finite:
            raise AltgradError(
                f"Format '{self.name}': amax_target is above 0 and at most the largest value {self.max_finite!r}, got "
                f"{self.amax_target!r}."
            )
        ends = () if self.beyond is None else self.beyond
        put(self, "constants", " ".join(repr(value) for value in (*self.table, *ends)))

    def _check(self) -> None:
        size, name = len(self.table), self.name
        if size < 2 or size & (size - 1) or size > 2**_MAX_BITS:
            raise AltgradError(
                f"The table of format '{name}' has a value for each code: 2^bits of them, up to {_MAX_BITS} bits; got "
                f"{size}. Fill up with NaN what means nothing."
            )
        seen: set[bytes] = set()
        for code, value in enumerate(self.table):
            key = struct.pack("d", value)
            if not math.isnan(value) and key in seen:
                raise AltgradError(
                    f"The table of format '{name}' has {value!r} at code {self.table.index(value)} and at code {code}: "
                    "a value has one code."
                )
            seen.add(key)
        if struct.pack("d", -0.0) in seen and struct.pack("d", 0.0) not in seen:
            raise AltgradError(f"The table of format '{name}' has -0.0 but not 0.0.")

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return len(self.table).bit_length() - 1

    @property
    def signed(self) -> bool:
        """Whether there are values below zero."""
        return self.numbers[0] < 0

    @property
    def min_finite(self) -> float:
        """Lowest finite value."""
        return self.numbers[0]

    @property
    def max_finite(self) -> float:
        """Largest finite value."""
        return self.numbers[-1]

    @property
    def scale_target(self) -> float:
        """``amax_target``, or the largest finite value."""
        return self.max_finite if self.amax_target is None else self.amax_target

    @property
    def min_positive(self) -> float:
        """Smallest value above zero."""
        return next(value for value in self.numbers if value > 0)

    @property
    def has_inf(self) -> bool:
        """Whether the table has +Inf."""
        return math.inf in self.table

    @property
    def has_negative_inf(self) -> bool:
        """Whether the table has -Inf."""
        return -math.inf in self.table

    @property
    def has_nan(self) -> bool:
        """Whether the table has a NaN."""
        return any(math.isnan(value) for value in self.table)

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code."""
        return any(value == 0 and math.copysign(1.0, value) < 0 for value in self.table)

    @property
    def inf_code(self) -> int | None:
        """Code of +Inf, None when the table has none."""
        return self.table.index(math.inf) if self.has_inf else None

    @property
    def nan_code(self) -> int | None:
        """The first code of a NaN, None when there is none."""
        return next((code for code, value in enumerate(self.table) if math.isnan(value)), None)

    @property
    def fits_bfloat16(self) -> bool:
        """Whether every finite value is exactly a bfloat16 value."""
        return all(_significand_fits(value, 8, -133) for value in self.numbers)

    @property
    def fits_float32(self) -> bool:
        """Whether every finite value is exactly a float32 value."""
        return all(_significand_fits(value, 24, -149) for value in self.numbers)

    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``; raises ``ValueError`` outside it."""
        if not 0 <= code < len(self.table):
            raise ValueError(f"{self.name} has codes 0 to {len(self.table) - 1}, got {code}")
        return self.table[code]


def is_number(value: float) -> bool:
    """Whether a value counts among the finite ones; -0.0 does not, beside 0.0."""
    return math.isfinite(value) and not (value == 0 and math.copysign(1.0, value) < 0)


def _significand_fits(value: float, bits: int, smallest: int) -> bool:
    """Whether a float with so many significant bits, its last unit at least 2^smallest, and under 2^128 holds it."""
    exponent = math.frexp(value)[1]
    scaled = math.ldexp(value, -max(exponent - bits, smallest))
    return abs(value) < 2.0**128 and scaled == int(scaled)
