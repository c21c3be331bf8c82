"""From a name to a ``Format``: what plugins registered, then the grammar of ``e<E>m<M>`` names. Imports no torch."""

from __future__ import annotations

from altgrad_core.errors import AltgradError, nearest
from altgrad_core.numerics.formats import Format, parse_format
from altgrad_core.plugins import installed

# Names of other projects and documents -> the name here. They are refused, not accepted, because several of them
# (E4M3 above all) mean different value sets in different places.
OTHER_NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "tensorfloat32": "tf32",
    "fp8": "e4m3fn' or 'e5m2",
    "fp8_e4m3": "e4m3fn",
    "fp8_e5m2": "e5m2",
    "float8_e4m3": "e4m3",
    "float8_e4m3fn": "e4m3fn",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2": "e5m2",
    "float8_e5m2fnuz": "e5m2fnuz",
    "fp6_e2m3": "e2m3fn",
    "fp6_e3m2": "e3m2fn",
    "fp4": "e2m1fn",
    "fp4_e2m1": "e2m1fn",
    "int8": "e0m7f",
}


def format_names() -> list[str]:
    """Return the names of the registered formats, sorted; names of the form ``e<E>m<M>`` are understood besides."""
    return installed().names("format")


def get_format(name: str | Format) -> Format:
    """Return the format called ``name``; a ``Format`` is returned as it is.

    Raises ``AltgradError`` naming the nearest known format, or the reason why float32 cannot hold the values.
    """
    if isinstance(name, Format):
        return name
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
    if here is None and plain != name and (plain in known or parse_format(plain) is not None):
        here = plain
    advice = f" It is called '{here}' here." if here else nearest(name, known)
    if "e4m3" in plain:
        advice += " (E4M3 of the OCP specification and of hardware documents is 'e4m3fn'; 'e4m3' has infinities.)"
    return (
        f"Unknown format '{name}'.{advice} Known: {', '.join(known)}; and any e<E>m<M>, e<E>m<M>fn, e<E>m<M>fnuz or "
        f"e<E>m<M>f.{installed().hint()}"
    )
