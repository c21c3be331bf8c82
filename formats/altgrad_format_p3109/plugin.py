"""Registers the signed 8-bit formats of IEEE P3109, ``binary8p1se`` to ``binary8p7sf``.

Any other ``binary<K>p<P><s|u><e|f>`` of 3 to 15 bits is understood by name, as these would be: they are registered to
be listed. P counts the implicit one, e has infinities and f has not; there is one zero and one NaN.
"""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import p3109_format

NOTES = {
    1: "powers of two and zero; the bias is even, so that ties go otherwise than in e7m0f",
    3: "as e5m2fnuz, bias 16, but for the infinities",
    4: "as e4m3fnuz, bias 8, but for the infinities",
}
FINITE_NOTES = {3: "the values and codes of e5m2fnuz", 4: "the values and codes of e4m3fnuz"}

FORMATS = tuple(
    p3109_format(8, precision, extended=extended, note=notes.get(precision, ""))
    for precision in range(1, 8)
    for extended, notes in ((True, NOTES), (False, {1: NOTES[1], **FINITE_NOTES}))
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
