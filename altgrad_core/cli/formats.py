"""``altgrad formats``: what there is, and one format in full. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from altgrad_core.numerics.formats import Format

_SPECIALS = {
    "ieee": "Inf NaN",
    "fn": "NaN",
    "fnuz": "NaN, no -0",
    "none": "none",
}
# Below this width the table leaves out what the page of one format says as well.
_WIDE, _NARROW = 150, 66
_LISTED_BITS = 8


def formats(
    name: Annotated[
        str | None, typer.Argument(help="A format's name, such as e4m3fn, or any e<E>m<M>[fn|fnuz|f].")
    ] = None,
) -> None:
    """List the number formats; with NAME, show one format's constants and values."""
    from rich.console import Console

    from altgrad_core.numerics.registry import get_format
    from altgrad_core.plugins import installed

    console = Console(highlight=False)
    if name is not None:
        _one(console, get_format(name))
        return
    plugins = installed()
    found = [plugins.get("format", known).value for known in plugins.names("format")]
    _table(console, sorted(found, key=lambda format: (-format.bits, format.name)))
    console.print(
        "Any e<E>m<M> works too: no suffix has Inf and NaN at the top exponent (all codes finite if E <= 1 or M = 0), "
        "fn has no Inf, fnuz no Inf and no -0, f is finite throughout."
    )
    console.print("What OCP and hardware documents call E4M3 is e4m3fn here.")
    if plugins.hint():
        console.print(plugins.hint().strip(), markup=False)


def number(value: float | None) -> str:
    """Return a value of a format as people write it: plain where short, else a power of two times a short factor."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
    if value == 0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    plain = f"{value:.9g}"
    if float(plain) == value and len(plain) <= 9 and abs(value) >= 0.01 and "e" not in plain:
        return plain
    fraction, exponent = math.frexp(value)
    if abs(fraction) == 0.5:
        return f"{'-' if value < 0 else ''}2^{exponent - 1}"
    factor = f"{2 * fraction:.9g}"
    return f"{factor}*2^{exponent - 1}" if float(factor) == 2 * fraction and len(factor) <= 8 else f"{value:.6g}"


def _table(console: Console, found: list[Format]) -> None:
    from rich import box
    from rich.table import Table

    from altgrad_core.numerics.formats import FloatFormat

    wide, narrow = console.width >= _WIDE, console.width < _NARROW
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("format", no_wrap=True)
    for header in ("bits",) if narrow else ("bits", "E/M"):
        table.add_column(header, justify="right", no_wrap=True)
    if wide:
        table.add_column("bias", justify="right", no_wrap=True)
    for header in ("max", "min subnormal") if narrow else ("max", "min normal", "min subnormal"):
        table.add_column(header if wide else header.replace(" ", "\n"), justify="right", no_wrap=True)
    if wide:
        table.add_column("specials", no_wrap=True)
        table.add_column("source", overflow="fold")
    for format in found:
        if not isinstance(format, FloatFormat):
            continue
        cells = [format.name, str(format.bits)]
        cells += [] if narrow else [f"{format.exponent_bits}/{format.mantissa_bits}"]
        cells += [str(format.bias)] if wide else []
        cells += [number(format.max_finite), *([] if narrow else [number(format.min_normal)])]
        cells += [number(format.min_subnormal)]
        cells += [_SPECIALS[format.specials], format.source] if wide else []
        table.add_row(*cells)
    console.print(table)


def _one(console: Console, format: Format) -> None:
    from altgrad_core.numerics.formats import FloatFormat

    assert isinstance(format, FloatFormat)
    sign = "sign, " if format.signed else "no sign, "
    above = f"up to {number(format.overflow_threshold)}{'' if format.threshold_rounds_to_max else ', exclusive'}"
    if not (format.has_inf or format.has_nan):
        above = "everything beyond, for want of Inf and NaN"
    rows = [
        ("bits", f"{format.bits}: {sign}{format.exponent_bits} exponent, {format.mantissa_bits} mantissa"),
        ("bias", str(format.bias)),
        ("max finite", f"{number(format.max_finite)}  (code {_hex(format.max_code, format.bits)})"),
        ("rounds to max", above),
        ("min normal", number(format.min_normal)),
        ("min subnormal", number(format.min_subnormal)),
        ("Inf", "none" if format.inf_code is None else f"code {_hex(format.inf_code, format.bits)} and its negative"),
        ("NaN", "none" if format.nan_code is None else f"encoded as {_hex(format.nan_code, format.bits)}"),
        ("-0", "yes" if format.has_negative_zero else "no"),
        ("in bfloat16", "every value is exact" if format.fits_bfloat16 else "not every value is exact"),
        ("torch dtype", format.torch_dtype or "none"),
        ("source", format.source or "not stated"),
    ]
    if format.note:
        rows.append(("note", format.note))
    console.print(format.name, style="bold")
    for label, text in rows:
        console.print(f"  {label:<14} {text}", markup=False, soft_wrap=console.width < 40)
    if format.bits > _LISTED_BITS:
        console.print(f"\n  {2**format.bits} codes; values are listed for formats of up to {_LISTED_BITS} bits.")
        return
    shown = [number(format.value(code)) for code in range(2 ** (format.bits - int(format.signed)))]
    heading = "codes with the sign bit clear" if format.signed else "codes"
    console.print(f"\nValues of the {len(shown)} {heading}, in hexadecimal order:")
    _grid(console, shown, format.bits)


def _grid(console: Console, cells: list[str], bits: int) -> None:
    """Print the cells in rows of a power of two of them, each row with the code of its first cell."""
    digits = (bits + 3) // 4
    width = max(len(cell) for cell in cells) + 2
    across = 1
    while across < 16 and across * 2 <= len(cells) and (across * 2) * width + digits + 5 <= console.width:
        across *= 2
    for start in range(0, len(cells), across):
        line = "".join(cell.rjust(width) for cell in cells[start : start + across])
        console.print(f"  0x{start:0{digits}X}{line}", markup=False, soft_wrap=True)


def _hex(code: int, bits: int) -> str:
    return f"0x{code:0{(bits + 3) // 4}X}"
