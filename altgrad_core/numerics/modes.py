"""Modes of rounding, saturation and MX scales by name. Imports no torch, so that configurations are checked without."""

from __future__ import annotations

from typing import Literal, get_args

Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic"]
"""Which neighbour a value between two values of a format becomes (IEEE 754-2019, 4.3; P3109 for ``stochastic``).

``nearest_even``: the nearer one, on a tie the one with the even code. ``nearest_away``: on a tie the larger in
magnitude. ``toward_zero``, ``up`` (towards +Inf), ``down``: as they say. ``stochastic``: either, the further one the
more likely the nearer the value is to it, so that the mean over draws is the value itself.
"""

Saturation = Literal["finite", "propagate", "none"]
"""What becomes of values that round to beyond the largest finite one; the words are those of IEEE P3109.

``finite``: they, and infinities, become the largest finite value. ``propagate``: finite ones do, infinities stay where
the format has them. ``none``: they become an infinity, or NaN in a format without one; but a finite value that is
rounded towards zero becomes the largest finite one (IEEE 754-2019, 7.4).
"""

MXMode = Literal["floor", "ceil", "rceil", "even"]
"""How the power of two of an MX block comes from its largest magnitude: see ``altgrad_core.numerics.blocks``."""

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
SATURATIONS: tuple[Saturation, ...] = get_args(Saturation)
MX_MODES: tuple[MXMode, ...] = get_args(MXMode)
