"""``FloatFormat``: sign, exponent and mantissa. Nothing here imports torch.

A ``FloatFormat`` has a sign bit (unless unsigned), E exponent bits and M mantissa bits. With the exponent field ``f``
and the mantissa field ``m``, a code means

    f = 0    m * 2^(1 - bias - M)                       zero and the subnormals
    f > 0    (1 + m * 2^-M) * 2^(f - bias)              the normals

so that the magnitude bits (f, m), read as one integer, are in the order of the values. E = 0 leaves the first line
alone: fixed point. What the last codes mean is a matter of ``specials``:

    ieee      the top exponent is Inf (m = 0) and NaN (m > 0)
    fn        no Inf; the all-ones code is NaN
    fnuz      no Inf, no -0; the code that would be -0 is NaN
    extended  no -0 and one NaN, on the code of -0 (unsigned: the all-ones code); Inf is the last code before it
    none      every code is a finite number

Every value is a float64 value. Those of most formats are float32 values too (``fits_float32``), which is what casts
compute in; wider formats are cast in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.format import Format

Specials = Literal["ieee", "fn", "fnuz", "extended", "none"]

SPECIALS: tuple[Specials, ...] = ("ieee", "fn", "fnuz", "extended", "none")
_MAX_EXPONENT_BITS, _MAX_MANTISSA_BITS = 11, 23


def default_bias(exponent_bits: int, specials: Specials) -> int:
    """Return 2^(E-1) - 1 (1 for E = 0, so that E0M7 is m/128 in (-1, 1)), one more for ``fnuz`` and ``extended``."""
    bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 1
    return bias + 1 if specials in ("fnuz", "extended") else bias


@attrs.frozen(kw_only=True)
class FloatFormat(Format):
    """Sign, exponent, mantissa; see the module's text. Raises ``AltgradError`` for what float64 cannot hold."""

    exponent_bits: int
    """E, 0 to 11; 0 is fixed point."""
    mantissa_bits: int
    """M, 0 to 23, without the implicit one."""
    specials: Specials = "ieee"
    """Which codes are not finite numbers: ``ieee``, ``fn``, ``fnuz``, ``extended`` or ``none``."""
    bias: int = attrs.field()
    """Subtracted from the exponent field; 2^(E-1) - 1 by default (1 for E = 0), one more for ``fnuz``, ``extended``."""
    signed: bool = True
    """Whether there is a sign bit; negative inputs of an unsigned format count as beyond its range."""

    # Derived once.
    min_exponent: int = attrs.field(init=False, eq=False, repr=False)
    """Exponent of the smallest normal, 1 - bias; the subnormals share its spacing."""
    max_exponent: int = attrs.field(init=False, eq=False, repr=False)
    """Exponent of the largest finite value."""
    max_code: int = attrs.field(init=False, eq=False, repr=False)
    """Magnitude code of the largest finite value."""
    max_finite: float = attrs.field(init=False, eq=False, repr=False)
    """Largest finite value."""
    min_positive: float = attrs.field(init=False, eq=False, repr=False)
    """Smallest value above zero."""
    beyond: float = attrs.field(init=False, eq=False, repr=False)
    """What the code after ``max_code`` would mean were it a number (Inf if that is 2^1024): rounding to it, or past it,
    is overflow."""
    constants: str = attrs.field(init=False, eq=False, repr=False)
    """What ``altgrad_core.numerics.kernel.Grid`` holds, as text: see there."""
    target: str = attrs.field(init=False, eq=False, repr=False)
    """``scale_target`` as text, likewise."""

    @bias.default
    def _default_bias(self) -> int:
        known = 0 <= self.exponent_bits <= _MAX_EXPONENT_BITS
        return default_bias(self.exponent_bits, self.specials) if known else 0

    def __attrs_post_init__(self) -> None:
        self._check()
        e, m = self.exponent_bits, self.mantissa_bits
        taken = {"fn": 1, "extended": 1 if self.signed else 2}.get(self.specials, 0)
        max_code = ((2**e - 1) << m) - 1 if self.specials == "ieee" else 2 ** (e + m) - 1 - taken
        if max_code < 1:
            raise AltgradError(f"Format '{self.name}' has no value but zero: give it more exponent or mantissa bits.")
        put = object.__setattr__
        put(self, "min_exponent", 1 - self.bias)
        put(self, "max_code", max_code)
        exponent = self._exponent(max_code)
        smallest = 1 - self.bias - m
        if exponent > 1023 or smallest < -1074:
            raise AltgradError(
                f"Format '{self.name}' spans 2^{smallest} to 2^{exponent} and more; casts compute in float64 at the "
                "most, whose values span 2^-1074 to just under 2^1024. Choose another bias or fewer exponent bits."
            )
        put(self, "max_exponent", exponent)
        put(self, "max_finite", self.magnitude(max_code))
        put(self, "min_positive", self.magnitude(1))
        past = self._exponent(max_code + 1)
        put(self, "beyond", self.magnitude(max_code + 1) if past <= 1023 else math.inf)
        numbers = [e, m, self.bias, self.signed, self.has_inf, self.has_nan, self.has_negative_zero]
        numbers += [self.threshold_rounds_to_max]
        lengths = [self.min_normal or 0.0, self.min_positive, self.max_finite, self.overflow_threshold, self.beyond]
        put(self, "target", repr(self.scale_target))
        put(self, "constants", " ".join([*(str(int(n)) for n in numbers), *(repr(length) for length in lengths)]))

    def _check(self) -> None:
        e, m, name = self.exponent_bits, self.mantissa_bits, self.name
        if self.specials not in SPECIALS:
            raise AltgradError(f"Format '{name}': specials is one of {', '.join(SPECIALS)}, got {self.specials!r}.")
        if not 0 <= e <= _MAX_EXPONENT_BITS or not 0 <= m <= _MAX_MANTISSA_BITS:
            raise AltgradError(
                f"Format '{name}' has {e} exponent and {m} mantissa bits; casts compute in float32 or float64, so that "
                f"up to {_MAX_EXPONENT_BITS} exponent bits and {_MAX_MANTISSA_BITS} mantissa bits are possible."
            )
        if self.specials == "ieee" and (e < 2 or m < 1):
            raise AltgradError(
                f"Format '{name}': IEEE specials need 2 exponent bits and 1 mantissa bit; "
                f"got {e} and {m}. Choose specials='none' (suffix f)."
            )
        if self.specials == "fnuz" and not self.signed:
            raise AltgradError(f"Format '{name}': fnuz puts its NaN on the code of -0, which an unsigned format lacks.")

    def _exponent(self, magnitude_code: int) -> int:
        """Return floor(log2(value)) of a non-zero magnitude code."""
        field, mantissa = magnitude_code >> self.mantissa_bits, magnitude_code & (2**self.mantissa_bits - 1)
        if field:
            return field - self.bias
        return int(mantissa).bit_length() - self.bias - self.mantissa_bits

    def magnitude(self, magnitude_code: int) -> float:
        """Return the value of the exponent and mantissa bits, read as a number whatever ``specials`` says."""
        field, mantissa = magnitude_code >> self.mantissa_bits, magnitude_code & (2**self.mantissa_bits - 1)
        if field:
            mantissa += 2**self.mantissa_bits
        return math.ldexp(mantissa, max(field, 1) - self.bias - self.mantissa_bits)

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def min_finite(self) -> float:
        """Lowest finite value, -max_finite or 0."""
        return -self.max_finite if self.signed else 0.0

    @property
    def min_normal(self) -> float | None:
        """Smallest normal value; None for fixed point (E = 0), which has none."""
        return math.ldexp(1.0, self.min_exponent) if self.exponent_bits else None

    @property
    def min_subnormal(self) -> float | None:
        """Smallest positive subnormal value; None when M = 0 leaves nothing between zero and the normals."""
        return self.min_positive if self.mantissa_bits else None

    @property
    def overflow_threshold(self) -> float:
        """Half-way from ``max_finite`` to ``beyond``: above it, and at it unless ``max_code`` is even, is overflow."""
        # Half a unit of the largest value; max_finite + beyond may be more than float64 holds.
        unit = max(self.max_code >> self.mantissa_bits, 1) - self.bias - self.mantissa_bits
        return self.max_finite + math.ldexp(1.0, unit - 1)

    @property
    def threshold_rounds_to_max(self) -> bool:
        """Whether ``overflow_threshold`` itself still rounds to ``max_finite`` (ties go to the even code)."""
        return self.max_code % 2 == 0

    @property
    def has_inf(self) -> bool:
        """Whether the format has +Inf, and if signed -Inf."""
        return self.specials in ("ieee", "extended")

    @property
    def has_negative_inf(self) -> bool:
        """Whether the format has -Inf."""
        return self.has_inf and self.signed

    @property
    def has_nan(self) -> bool:
        """Whether the format has a code for NaN."""
        return self.specials != "none"

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code."""
        return self.signed and self.specials not in ("fnuz", "extended")

    @property
    def nan_is_negative_zero(self) -> bool:
        """Whether NaN has the code that would be -0."""
        return self.signed and self.specials in ("fnuz", "extended")

    @property
    def sign_bit(self) -> int:
        """The sign's bit in a code; 0 for an unsigned format."""
        return 1 << (self.exponent_bits + self.mantissa_bits) if self.signed else 0

    @property
    def inf_code(self) -> int | None:
        """Code of +Inf, None when the format has none."""
        return self.max_code + 1 if self.has_inf else None

    @property
    def nan_code(self) -> int | None:
        """The code that NaN is encoded to (the positive quiet one where there are several), None when there is none."""
        if self.specials == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) | 1 << (self.mantissa_bits - 1)
        if self.nan_is_negative_zero:
            return self.sign_bit
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1 if self.has_nan else None

    @property
    def fits_bfloat16(self) -> bool:
        """Whether every finite value is exactly a bfloat16 value (8 significant bits, from 2^-133 to under 2^128)."""
        significant = self.mantissa_bits + (1 if self.exponent_bits else 0)
        return significant <= 8 and 1 - self.bias - self.mantissa_bits >= -133 and self.max_exponent <= 127

    @property
    def fits_float32(self) -> bool:
        """Whether every finite value is exactly a float32 value (from 2^-149 to under 2^128)."""
        return 1 - self.bias - self.mantissa_bits >= -149 and self.max_exponent <= 127

    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``; raises ``ValueError`` outside it."""
        if not 0 <= code < 2**self.bits:
            raise ValueError(f"{self.name} has codes 0 to {2**self.bits - 1}, got {code}")
        negative = bool(code & self.sign_bit)
        magnitude_code = code & ~self.sign_bit
        if self.nan_is_negative_zero and code == self.sign_bit:
            return math.nan
        if magnitude_code > self.max_code:
            return math.copysign(math.inf, -negative or 1) if magnitude_code == self.inf_code else math.nan
        magnitude = self.magnitude(magnitude_code)
        return -magnitude if negative else magnitude
