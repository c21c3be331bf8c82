"""Number formats as data: which values exist, under which codes. Nothing here imports torch.

A ``FloatFormat`` has a sign bit (unless unsigned), E exponent bits and M mantissa bits. With the exponent field ``f``
and the mantissa field ``m``, a code means

    f = 0    m * 2^(1 - bias - M)                       zero and the subnormals
    f > 0    (1 + m * 2^-M) * 2^(f - bias)              the normals

so that the magnitude bits (f, m), read as one integer, are in the order of the values. E = 0 leaves the first line
alone: fixed point. What the last codes mean is a matter of ``specials``:

    ieee     the top exponent is Inf (m = 0) and NaN (m > 0)
    fn       no Inf; the all-ones code is NaN
    fnuz     no Inf, no -0; the code that would be -0 is NaN
    none     every code is a finite number

Every value of a format must be a float32 value, because float32 (or float64) is what casts compute in.
"""

from __future__ import annotations

import abc
import math
import re
from typing import Literal

import attrs

from altgrad_core.errors import AltgradError

Specials = Literal["ieee", "fn", "fnuz", "none"]

SPECIALS: tuple[Specials, ...] = ("ieee", "fn", "fnuz", "none")
_NAME = re.compile(r"e(0|[1-9][0-9]*)m(0|[1-9][0-9]*)(fnuz|fn|f)?")
# Below this width LLVM's "fn" formats (fp6, fp4) have no NaN either.
_NARROW_BITS = 8


@attrs.frozen(kw_only=True)
class Format(abc.ABC):
    """A finite set of values with an encoding."""

    name: str
    """What users write; pins the semantics."""
    source: str = ""
    """Clause of the standard, or the project, that defines it."""
    note: str = ""
    """A sentence that spares a user a mistake; empty when there is none."""
    torch_dtype: str | None = None
    """Name of the torch dtype with the same encoding (``float8_e5m2``), None when torch has none."""

    @property
    @abc.abstractmethod
    def bits(self) -> int:
        """Width of a code in bits."""

    @property
    @abc.abstractmethod
    def fits_bfloat16(self) -> bool:
        """Whether every finite value is exactly a bfloat16 value."""

    @abc.abstractmethod
    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``: a finite number, -0.0, an infinity or NaN."""

    def values(self) -> list[float]:
        """Return the values of all codes, in code order; meant for formats of up to 16 bits."""
        return [self.value(code) for code in range(2**self.bits)]


def default_bias(exponent_bits: int, specials: Specials) -> int:
    """Return 2^(E-1) - 1 (1 for E = 0, so that E0M7 is m/128 in (-1, 1)), one more for ``fnuz``."""
    bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 1
    return bias + 1 if specials == "fnuz" else bias


@attrs.frozen(kw_only=True)
class FloatFormat(Format):
    """Sign, exponent, mantissa; see the module's text. Raises ``AltgradError`` for what float32 cannot hold."""

    exponent_bits: int
    """E, 0 to 8; 0 is fixed point."""
    mantissa_bits: int
    """M, 0 to 23, without the implicit one."""
    specials: Specials = "ieee"
    """Which codes are not finite numbers: ``ieee``, ``fn``, ``fnuz`` or ``none``."""
    bias: int = attrs.field()
    """Subtracted from the exponent field; 2^(E-1) - 1 by default (1 for E = 0), one more for ``fnuz``."""
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
    """What the code after ``max_code`` would mean were it a number: rounding to it, or past it, is overflow."""
    constants: str = attrs.field(init=False, eq=False, repr=False)
    """What ``altgrad_core.numerics.kernel.Grid`` holds, as text: see there."""

    @bias.default
    def _default_bias(self) -> int:
        return default_bias(self.exponent_bits, self.specials) if 0 <= self.exponent_bits <= 8 else 0

    def __attrs_post_init__(self) -> None:
        self._check()
        e, m = self.exponent_bits, self.mantissa_bits
        max_code = {"ieee": ((2**e - 1) << m) - 1, "fn": 2 ** (e + m) - 2}.get(self.specials, 2 ** (e + m) - 1)
        if max_code < 1:
            raise AltgradError(f"Format '{self.name}' has no value but zero: give it more exponent or mantissa bits.")
        put = object.__setattr__
        put(self, "min_exponent", 1 - self.bias)
        put(self, "max_code", max_code)
        exponent = self._exponent(max_code)
        smallest = 1 - self.bias - m
        if exponent > 127 or smallest < -149:
            raise AltgradError(
                f"Format '{self.name}' spans 2^{smallest} to 2^{exponent} and more; casts compute in float32, whose "
                "values span 2^-149 to just under 2^128. Choose another bias (fnuz has one more) or fewer "
                "exponent bits."
            )
        put(self, "max_exponent", exponent)
        put(self, "max_finite", self.magnitude(max_code))
        put(self, "min_positive", self.magnitude(1))
        put(self, "beyond", self.magnitude(max_code + 1))
        numbers = [e, m, self.bias, self.signed, self.has_inf, self.has_nan, self.has_negative_zero]
        numbers += [self.threshold_rounds_to_max]
        lengths = [self.min_normal or 0.0, self.min_positive, self.max_finite, self.overflow_threshold, self.beyond]
        put(self, "constants", " ".join([*(str(int(n)) for n in numbers), *(repr(length) for length in lengths)]))

    def _check(self) -> None:
        e, m, name = self.exponent_bits, self.mantissa_bits, self.name
        if self.specials not in SPECIALS:
            raise AltgradError(f"Format '{name}': specials is one of {', '.join(SPECIALS)}, got {self.specials!r}.")
        if not 0 <= e <= 8 or not 0 <= m <= 23:
            raise AltgradError(
                f"Format '{name}' has {e} exponent and {m} mantissa bits; casts compute in float32, "
                "so that up to 8 exponent bits and 23 mantissa bits are possible."
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
        return (self.max_finite + self.beyond) / 2

    @property
    def threshold_rounds_to_max(self) -> bool:
        """Whether ``overflow_threshold`` itself still rounds to ``max_finite`` (ties go to the even code)."""
        return self.max_code % 2 == 0

    @property
    def has_inf(self) -> bool:
        """Whether the format has infinities."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether the format has a code for NaN."""
        return self.specials != "none"

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code."""
        return self.signed and self.specials != "fnuz"

    @property
    def sign_bit(self) -> int:
        """The sign's bit in a code; 0 for an unsigned format."""
        return 1 << (self.exponent_bits + self.mantissa_bits) if self.signed else 0

    @property
    def inf_code(self) -> int | None:
        """Code of +Inf, None when the format has none."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits if self.has_inf else None

    @property
    def nan_code(self) -> int | None:
        """The code that NaN is encoded to (the positive quiet one where there are several), None when there is none."""
        if self.specials == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) | 1 << (self.mantissa_bits - 1)
        if self.specials == "fn":
            return (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return self.sign_bit if self.specials == "fnuz" else None

    @property
    def fits_bfloat16(self) -> bool:
        """Whether every finite value is exactly a bfloat16 value (8 significant bits, spacing of at least 2^-133)."""
        significant = self.mantissa_bits + (1 if self.exponent_bits else 0)
        return significant <= 8 and 1 - self.bias - self.mantissa_bits >= -133

    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``; raises ``ValueError`` outside it."""
        if not 0 <= code < 2**self.bits:
            raise ValueError(f"{self.name} has codes 0 to {2**self.bits - 1}, got {code}")
        negative = bool(code & self.sign_bit)
        magnitude_code = code & ~self.sign_bit
        if self.specials == "fnuz" and code == self.sign_bit:
            return math.nan
        if magnitude_code > self.max_code:
            return math.copysign(math.inf, -negative or 1) if magnitude_code == self.inf_code else math.nan
        magnitude = self.magnitude(magnitude_code)
        return -magnitude if negative else magnitude


def parse_format(name: str) -> FloatFormat | None:
    """Return the format that a name ``e<E>m<M>[fn|fnuz|f]`` spells, None when the name is of another form.

    No suffix means IEEE specials, or all codes finite where IEEE specials are impossible (E <= 1 or M = 0). ``fn``
    below 8 bits has no NaN, as LLVM's fp6 and fp4. Raises ``AltgradError`` when float32 cannot hold the values.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    e, m, suffix = int(match[1]), int(match[2]), match[3]
    specials: Specials
    if suffix is None:
        specials = "none" if e <= 1 or m == 0 else "ieee"
    elif suffix == "fn":
        specials = "none" if 1 + e + m < _NARROW_BITS else "fn"
    else:
        specials = "fnuz" if suffix == "fnuz" else "none"
    return FloatFormat(
        name=name, exponent_bits=e, mantissa_bits=m, specials=specials, source="the rule for e<E>m<M> names"
    )
