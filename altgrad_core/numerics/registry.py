"""From a name to a ``Format``: what plugins registered, then the names that spell a format. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from altgrad_core.errors import AltgradError, nearest
from altgrad_core.numerics.foreign import from_gfloat
from altgrad_core.numerics.format import Format
from altgrad_core.numerics.names import parse_format
from altgrad_core.plugins import installed

_E4M3 = (
    " The E4M3 of the OCP specification and of hardware documents is 'e4m3fn' here (max 448); 'e4m3' here is LLVM's, which "
    "has infinities (max 240)."
)
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
    "fp8_e4m3": "e4m3",
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
    advice = _advice(name)
    rules = (
        ""
        if advice
        else (
            "; any e<E>m<M>, e<E>m<M>fn, e<E>m<M>fnuz, e<E>m<M>f or binary<K>p<P><s|u><e|f> (IEEE P3109) is understood, too"
        )
    )
    return f"Unknown format '{name}'.{advice} `altgrad formats` lists all{rules}.{installed().hint()}"


def _advice(name: str) -> str:
    """Return the sentence that says what the name may have meant, or an empty string."""
    known = format_names()
    plain = name.strip().lower().replace("-", "_").removeprefix("torch.")
    here = OTHER_NAMES.get(plain)
    if (match := _GFLOAT_P3109.fullmatch(plain)) is not None:
        here = f"binary{match[1]}p{match[2]}{match[3]}"
    elif here is None and plain != name and _is_format(plain, known):
        here = plain
    advice = f" It is called '{here}' here." if here else _similar(plain, known)
    return _E4M3 if "'e4m3'" in advice else advice


def _similar(name: str, known: list[str]) -> str:
    # Two letters that changed places (e4m3nf) are nearer than what differs by one: difflib would say e4m3f.
    swapped = (f"{name[:i]}{name[i + 1]}{name[i]}{name[i + 2 :]}" for i in range(len(name) - 1))
    meant = next((other for other in swapped if _is_format(other, known)), None)
    return nearest(name, known) if meant is None else f" Did you mean '{meant}'?"


def _is_format(name: str, known: list[str]) -> bool:
    try:
        return name in known or parse_format(name) is not None
    except AltgradError:  # spelled like a format, but none that casts can hold
        return False
