"""Names that spell a format: ``e<E>m<M>[fn|fnuz|f]`` and P3109's ``binary<K>p<P><s|u><e|f>``. Imports no torch."""

from __future__ import annotations

import re

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.floatformat import FloatFormat, Specials

_SPLIT = re.compile(r"e(0|[1-9][0-9]*)m(0|[1-9][0-9]*)(fnuz|fn|f)?")
_P3109 = re.compile(r"binary([1-9][0-9]*)p([1-9][0-9]*)([su])([ef])")
# Below this width LLVM's "fn" formats (fp6, fp4) have no NaN either.
_NARROW_BITS = 8
_P3109_BITS = range(3, 16)


def parse_format(name: str) -> FloatFormat | None:
    """Return the format that a name spells, None when the name is of another form.

    ``e<E>m<M>``: no suffix means IEEE specials, or all codes finite where IEEE specials are impossible (E <= 1 or
    M = 0); ``fn`` has no Inf, and below 8 bits no NaN either, as LLVM's fp6 and fp4; ``fnuz`` no Inf and no -0; ``f``
    is finite throughout. ``binary<K>p<P>``: see ``p3109_format``. Raises ``AltgradError`` when float64 cannot hold the
    values, or P3109 does not define the format.
    """
    match = _SPLIT.fullmatch(name)
    if match is not None:
        return _split_format(name, int(match[1]), int(match[2]), match[3])
    match = _P3109.fullmatch(name)
    if match is not None:
        return p3109_format(int(match[1]), int(match[2]), signed=match[3] == "s", extended=match[4] == "e")
    return None


def _split_format(name: str, e: int, m: int, suffix: str | None) -> FloatFormat:
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


def p3109_format(
    bits: int, precision: int, *, signed: bool = True, extended: bool = True, note: str = ""
) -> FloatFormat:
    """Return IEEE P3109's ``binary<bits>p<precision>`` with the letters s or u (signed), e or f (extended).

    One zero and one NaN, on the code of -0 (unsigned: the last code). Extended formats have Inf on the last code before
    the NaN, or of each sign. The bias puts 1.0 in the middle of the positive codes: 2^(K-P-1), unsigned 2^(K-P).
    ``bits`` is 3 to 15, ``precision`` (which counts the implicit one) 1 to ``bits``; signed formats of full precision
    are fixed point. Raises ``AltgradError`` outside, and where float64 cannot hold the values, which is the fate of 32
    of the 468: those with 12 or more exponent bits.
    """
    name = f"binary{bits}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}"
    if bits not in _P3109_BITS or precision > bits:
        raise AltgradError(
            f"Format '{name}': binary<K>p<P> is understood for K of {_P3109_BITS[0]} to {_P3109_BITS[-1]} bits and "
            f"P of 1 to K; got K = {bits}, P = {precision}."
        )
    specials: Specials = "extended" if extended else ("fnuz" if signed else "fn")
    exponent_bits = bits - precision + (0 if signed else 1)
    return FloatFormat(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=precision - 1,
        specials=specials,
        bias=2 ** (exponent_bits - 1) if exponent_bits else 0,
        signed=signed,
        source="IEEE P3109 4.0",
        note=note,
    )
