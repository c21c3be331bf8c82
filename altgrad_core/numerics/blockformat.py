"""``BlockFormat``: small numbers that share scales. Nothing here imports torch."""

from __future__ import annotations

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.format import Format


@attrs.frozen(kw_only=True)
class BlockFormat(Format):
    """Blocks of ``block`` elements along the reduction dimension, each block with a scale of its own.

    An element has no value without its block's scale, so that nothing is cast to it element by element; ``quantize``
    finds the scales, as the scaling policies ``mx`` and ``nvfp4`` do. What the class says of values, ``max_finite`` and
    the rest, is said of the elements before they are scaled.
    """

    element: Format
    """Format of the elements."""
    scale_format: Format
    """Format of the scales that blocks have."""
    block: int
    """Elements in a block."""
    tensor_scale: bool = False
    """Whether one more scale, a float32 number, belongs to the whole tensor."""

    def __attrs_post_init__(self) -> None:
        if self.block < 1:
            raise AltgradError(f"Format '{self.name}': a block has one element or more, got {self.block}.")
        for part in (self.element, self.scale_format):
            if isinstance(part, BlockFormat):
                raise AltgradError(f"Format '{self.name}' is made of element formats; '{part.name}' has blocks itself.")

    @property
    def bits_per_value(self) -> float:
        """Bits an element takes with its share of the block's scale (a tensor's one scale is not counted)."""
        return self.element.bits + self.scale_format.bits / self.block

    @property
    def bits(self) -> int:
        """Width of an element's code in bits."""
        return self.element.bits

    @property
    def signed(self) -> bool:
        """Whether elements can be below zero."""
        return self.element.signed

    @property
    def max_finite(self) -> float:
        """Largest finite value of an element."""
        return self.element.max_finite

    @property
    def target(self) -> str:
        """``scale_target`` as text."""
        return self.element.target

    @property
    def scale_target(self) -> float:
        """The magnitude that scaling by amax puts the largest element at."""
        return self.element.scale_target

    @property
    def scaling_kind(self) -> str:
        """The scaling policy that finds this format's scales, ``mx`` or ``nvfp4``."""
        return "nvfp4" if self.tensor_scale else "mx"

    @property
    def min_finite(self) -> float:
        """Lowest finite value of an element."""
        return self.element.min_finite

    @property
    def min_positive(self) -> float:
        """Smallest value of an element above zero."""
        return self.element.min_positive

    @property
    def has_inf(self) -> bool:
        """Whether an element can be +Inf."""
        return self.element.has_inf

    @property
    def has_negative_inf(self) -> bool:
        """Whether an element can be -Inf."""
        return self.element.has_negative_inf

    @property
    def has_nan(self) -> bool:
        """Whether an element can be NaN."""
        return self.element.has_nan

    @property
    def has_negative_zero(self) -> bool:
        """Whether an element can be -0."""
        return self.element.has_negative_zero

    @property
    def inf_code(self) -> int | None:
        """An element's code of +Inf, None when it has none."""
        return self.element.inf_code

    @property
    def nan_code(self) -> int | None:
        """An element's code of NaN, None when it has none."""
        return self.element.nan_code

    @property
    def fits_bfloat16(self) -> bool:
        """Whether every value of an element is exactly a bfloat16 value."""
        return self.element.fits_bfloat16

    @property
    def fits_float32(self) -> bool:
        """Whether every value of an element is exactly a float32 value."""
        return self.element.fits_float32

    def value(self, code: int) -> float:
        """Return the value of an element's code before scaling."""
        return self.element.value(code)
