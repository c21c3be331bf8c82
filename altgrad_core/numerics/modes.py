"""Rounding and saturation modes by name. Imports no torch, so that configurations are checked without it."""

from __future__ import annotations

from typing import Literal, get_args

Rounding = Literal["nearest_even"]
"""``nearest_even``: to the nearest value, ties to the even code."""

Saturation = Literal["finite", "propagate", "none"]
"""What becomes of values that round to beyond the largest finite one; the words are those of IEEE P3109.

``finite``: they, and infinities, become the largest finite value. ``propagate``: finite ones do, infinities stay where
the format has them. ``none``: they become an infinity, or NaN in a format without one.
"""

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
SATURATIONS: tuple[Saturation, ...] = get_args(Saturation)
