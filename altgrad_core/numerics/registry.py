"""From a name to a ``Format``: what plugins registered, then the names that spell a format. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from altgrad_core.errors import AltgradError, nearest
from altgrad_core.numerics.foreign import from_gfloat
from altgrad_core.numerics.format import Format
from altgrad_core.numerics.names import parse_format
from altgrad_core.plugins import installed

# Names of other projects and documents -> the name here. They are refused, not accepted, because several of them
# (E4M3 above all) mean different value sets in different places.
OTHER_NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "binary16": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "binary32": "fp32",
    "tensorfloat32": "tf32",
    "fp8": "e4m3fn' or 'e5m2",
    "fp8_e4m3": "e4m3fn",
    "fp8_e5m2": "e5m2",
    "float8_e3m4": "e3m4",
    "float8_e4m3": "e4m3",
    "float8_e4m3fn": "e4m3fn",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e4m3b11fnuz": "e4m3b11fnuz",
    "float8_e5m2": "e5m2",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float8_e8m0fnu": "e8m0fnu",
    "fp6_e2m3": "e2m3fn",
    "fp6_e3m2": "e3m2fn",
    "float6_e2m3fn": "e2m3fn",
    "float6_e3m2fn": "e3m2fn",
    "fp4": "e2m1fn",
    "fp4_e2m1": "e2m1fn",
    "float4_e2m1fn": "e2m1fn",
    "float4_e2m1fn_x2": "e2m1fn",
    "mxfp8": "mxfp8_e4m3' or 'mxfp8_e5m2",
    "mxfp6": "mxfp6_e2m3' or 'mxfp6_e3m2",
    "mxfp4_e2m1": "mxfp4",
    "nvfp4_e2m1": "nvfp4",
    "normalfloat4": "nf4",
    "takum_log8": "takum8",
    "posit8_2": "posit8",
}
_GFLOAT_P3109 = re.compile(r"p3109_k([0-9]+)p([0-9]+)([su][ef])")


def format_names() -> list[str]:
    """Return the names of the registered formats, sorted; names that spell a format are understood besides."""
    return installed().names("format")


def get_format(name: str | Format | Any) -> Format:
    """Return the format called ``name``; a ``Format`` is returned as it is, a gfloat ``FormatInfo`` is converted.

    Raises ``AltgradError`` naming the nearest known format, or the reason why casts cannot hold the values.
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        return from_gfloat(name)
    extension = installed().find("format", name)
    if extension is not None:
        assert isinstance(extension.value, Format)
        return extension.value
    spelled = parse_format(name)
    if spelled is not None:
        return spelled
    raise AltgradError(_refusal(name))


def _refusal(name: str) -> str:
    known = format_names()
    plain = name.strip().lower().replace("-", "_").removeprefix("torch.")
    here = OTHER_NAMES.get(plain)
    if (match := _GFLOAT_P3109.fullmatch(plain)) is not None:
        here = f"binary{match[1]}p{match[2]}{match[3]}"
    elif here is None and plain != name and (plain in known or parse_format(plain) is not None):
        here = plain
    advice = f" It is called '{here}' here." if here else nearest(name, known)
    if "e4m3" in plain:
        advice += " (E4M3 of the OCP specification and of hardware documents is 'e4m3fn'; 'e4m3' has infinities.)"
    return (
        f"Unknown format '{name}'.{advice} Known: {', '.join(known)}; and any e<E>m<M>, e<E>m<M>fn, e<E>m<M>fnuz or "
        f"e<E>m<M>f, and IEEE P3109's binary<K>p<P><s|u><e|f>.{installed().hint()}"
    )
