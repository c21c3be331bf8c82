"""``Format``: what every number format can say about itself. Nothing here imports torch."""

from __future__ import annotations

import abc

import attrs


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
    def signed(self) -> bool:
        """Whether there are values below zero."""

    @property
    @abc.abstractmethod
    def max_finite(self) -> float:
        """Largest finite value."""

    @property
    @abc.abstractmethod
    def min_finite(self) -> float:
        """Lowest finite value."""

    @property
    @abc.abstractmethod
    def min_positive(self) -> float:
        """Smallest value above zero."""

    @property
    @abc.abstractmethod
    def has_inf(self) -> bool:
        """Whether the format has +Inf."""

    @property
    @abc.abstractmethod
    def has_negative_inf(self) -> bool:
        """Whether the format has -Inf."""

    @property
    @abc.abstractmethod
    def has_nan(self) -> bool:
        """Whether the format has a code for NaN."""

    @property
    @abc.abstractmethod
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code."""

    @property
    @abc.abstractmethod
    def inf_code(self) -> int | None:
        """Code of +Inf, None when the format has none."""

    @property
    @abc.abstractmethod
    def nan_code(self) -> int | None:
        """The code that NaN is encoded to, None when there is none."""

    @property
    @abc.abstractmethod
    def fits_bfloat16(self) -> bool:
        """Whether every finite value is exactly a bfloat16 value."""

    @property
    @abc.abstractmethod
    def fits_float32(self) -> bool:
        """Whether every finite value is exactly a float32 value; of others a float32 tensor holds what it can."""

    @property
    def scale_target(self) -> float:
        """The magnitude that scaling by amax puts the largest element at: the largest value, unless a format says
        otherwise."""
        return self.max_finite

    @property
    def target(self) -> str:
        """``scale_target`` as text, which is a constant to a tracing compiler."""
        return repr(self.scale_target)

    @abc.abstractmethod
    def value(self, code: int) -> float:
        """Return the value of a code in ``range(2 ** bits)``: a finite number, -0.0, an infinity or NaN."""

    def values(self) -> list[float]:
        """Return the values of all codes, in code order; meant for formats of up to 16 bits."""
        return [self.value(code) for code in range(2**self.bits)]
