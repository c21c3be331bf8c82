"""Number formats as data: which values exist, under which codes. Nothing here imports torch.

``FloatFormat``  sign, exponent, mantissa, and which codes are special
``TableFormat``  any table of values
``BlockFormat``  elements of either, in blocks that share a scale
"""

from altgrad_core.numerics.blockformat import BlockFormat
from altgrad_core.numerics.floatformat import SPECIALS, FloatFormat, Specials, default_bias
from altgrad_core.numerics.format import Format
from altgrad_core.numerics.names import p3109_format, parse_format
from altgrad_core.numerics.tableformat import TableFormat

__all__ = [
    "SPECIALS",
    "BlockFormat",
    "FloatFormat",
    "Format",
    "Specials",
    "TableFormat",
    "default_bias",
    "p3109_format",
    "parse_format",
]
