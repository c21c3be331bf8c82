"""Number formats, rounding, casts, statistics and scaling: pure functions on tensors that know nothing of training.

``formats`` and ``registry`` import no torch; ``cast``, ``codes``, ``statistics`` and ``scaling`` do and are imported by
path.
"""

from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format, TableFormat, parse_format
from altgrad_core.numerics.registry import format_names, get_format

__all__ = ["BlockFormat", "FloatFormat", "Format", "TableFormat", "format_names", "get_format", "parse_format"]
