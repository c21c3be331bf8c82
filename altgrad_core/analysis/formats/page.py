"""One format in full: constants, density, values. Imports no torch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from altgrad_core.analysis.formats.facts import (
    LISTED_BITS,
    Facts,
    binades,
    bits_per_value,
    element_of,
    facts_of,
    hexadecimal,
    number,
    positive_values,
)
from altgrad_core.analysis.formats.hardware import native_on
from altgrad_core.analysis.formats.layout import bars, number_line
from altgrad_core.errors import AltgradError
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format, TableFormat

Line = tuple[str, str]
"""Text and style."""

# Values are listed unasked for up to this width.
_SHORT_BITS = 8
_LABEL = 17
_ROWS = 8
_INDENT = "  "
_GUTTER = 11  # characters before the axis of a chart


def page(format: Format, width: int, *, ascii_only: bool, values: bool = False) -> list[Line]:
    """Return the lines of a format's page, for a terminal of ``width`` characters.

    ``values`` lists them for formats of more than 8 bits as well, up to 16; raises ``AltgradError`` beyond.
    """
    element = element_of(format)
    made: list[Line] = [(format.name, "bold")]
    rows = _block_rows(format) if isinstance(format, BlockFormat) else _rows(format, facts_of(format))
    for label, text in rows:
        folded = textwrap.wrap(text, max(width - _LABEL - 2, 24)) or [""]
        made += [(f"{_INDENT}{label if i == 0 else '':<{_LABEL - 2}}{part}", "") for i, part in enumerate(folded)]
    if isinstance(format, BlockFormat):
        made += [("", ""), (f"The elements are {element.name}:", "italic")]
    made += [("", ""), *density(element, width, ascii_only=ascii_only)]
    if element.bits <= _SHORT_BITS or values:
        made += [("", ""), *value_table(element, width)]
    else:
        count = f"{2**element.bits:,} codes"
        ask = "--values lists them all" if element.bits <= LISTED_BITS else "too many to list"
        made += [("", ""), (f"{count}; {ask}.", "")]
    return made


def _rows(format: Format, facts: Facts) -> list[tuple[str, str]]:
    bits = format.bits
    rows = []
    if isinstance(format, FloatFormat):
        sign = "sign, " if format.signed else "no sign, "
        rows += [
            ("bits", f"{bits}: {sign}{format.exponent_bits} exponent, {format.mantissa_bits} mantissa"),
            ("bias", str(format.bias)),
            ("max finite", f"{number(format.max_finite)}  (code {hexadecimal(format.max_code, bits)})"),
            ("rounds to max", _overflow(format)),
            ("min normal", number(format.min_normal)),
            ("min subnormal", number(format.min_subnormal)),
        ]
    else:
        rows += [
            ("bits", f"{bits}: a table of {2**bits} values"),
            ("max finite", number(format.max_finite)),
            ("min positive", number(format.min_positive)),
        ]
        if isinstance(format, TableFormat) and format.signed and format.min_finite != -format.max_finite:
            rows.append(("min finite", number(format.min_finite)))
        if isinstance(format, TableFormat) and format.nearest is not None:
            rows.append(("rounding", "nearest_even is a rule of its own; the other modes are those of any table"))
    rows += [
        ("range", f"{facts.binades:.1f} binades, {facts.range_db:.0f} dB"),
        ("precision", _precision(facts)),
        ("Inf", "none" if format.inf_code is None else _signed_code(format.inf_code, format)),
        ("NaN", "none" if format.nan_code is None else f"encoded as {hexadecimal(format.nan_code, bits)}"),
        ("-0", "yes" if format.has_negative_zero else "no"),
        ("in bfloat16", "every value is exact" if format.fits_bfloat16 else "not every value is exact"),
    ]
    return rows + _provenance(format)


def _overflow(format: FloatFormat) -> str:
    if not (format.has_inf or format.has_nan):
        return "everything beyond, for want of Inf and NaN"
    return f"up to {number(format.overflow_threshold)}{'' if format.threshold_rounds_to_max else ', exclusive'}"


def _signed_code(code: int, format: Format) -> str:
    return f"code {hexadecimal(code, format.bits)}{' and its negative' if format.signed else ''}"


def _precision(facts: Facts) -> str:
    plural = "" if facts.significant_bits == 1 else "s"
    bits = f"{facts.significant_bits:.3g} significant bit{plural}, {facts.digits:.1f} decimal digits"
    if facts.relative_error is None:
        return f"up to {bits}"
    return f"{bits}; relative error of a normal at most {number(facts.relative_error)}"


def _provenance(format: Format) -> list[tuple[str, str]]:
    native = native_on(format)
    hardware = [("native on", native.full), ("according to", native.source)] if native else []
    rows = [
        *(hardware or [("native on", "no hardware known; casts emulate it anywhere")]),
        ("torch dtype", format.torch_dtype or "none"),
        ("source", format.source or "not stated"),
    ]
    return [*rows, ("note", format.note)] if format.note else rows


def _block_rows(format: BlockFormat) -> list[tuple[str, str]]:
    element, scale = format.element, format.scale_format
    tensor = ", times one float32 scale for the tensor" if format.tensor_scale else ""
    share = f"{element.bits} + {scale.bits}/{format.block}"
    largest = element.max_finite * scale.max_finite
    return [
        ("bits", f"{bits_per_value(format):g} a value: {share}"),
        ("elements", f"{element.name}: max {number(element.max_finite)}, min positive {number(element.min_positive)}"),
        ("scale", f"{scale.name}, one for {format.block} elements along the reduction dimension{tensor}"),
        ("max in a block", f"{number(element.max_finite)} times the scale; {number(largest)} at the largest"),
        ("block's range", f"{facts_of(format).binades:.1f} binades, {facts_of(format).range_db:.0f} dB"),
        *_provenance(format),
    ]


def density(format: Format, width: int, *, ascii_only: bool) -> list[Line]:
    """Return a chart of how many values each binade holds, and the number line up to the largest value."""
    counts = list(binades(format))
    low, high = counts[0][0], counts[-1][0]
    room = max(width - _GUTTER - 4, 20)
    each = max(1, math.ceil(len(counts) / room))  # binades a column
    wide = max(1, min(4, room // math.ceil(len(counts) / each)))  # characters a column
    columns = [max(n for _, n in counts[i : i + each]) for i in range(0, len(counts), each)]
    most = math.log2(max(columns)) + 1
    rows = min(_ROWS, math.ceil(most))
    # Height is log2 of the number of values, and one: the bits of precision that a value of this magnitude has.
    heights = [(math.log2(count) + 1) / most if count else 0.0 for count in columns for _ in range(wide)]
    axis, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    made: list[Line] = [("Bits of precision by binade (log2 of the number of values in it, plus one):", "italic")]
    labels = {rows - 1: _values(1), 0: _values(max(columns))}
    for i, line in enumerate(bars(heights, rows, ascii_only=ascii_only)):
        made.append((f"{labels.get(i, ''):>{_GUTTER}} {axis}{line.rstrip()}", ""))
    made.append((f"{'':>{_GUTTER}} {corner}{dash * (len(columns) * wide)}", ""))
    made.append((f"{'':>{_GUTTER + 2}}{_axis(low, high, len(columns) * wide)}", ""))
    if format.bits <= _SHORT_BITS:
        line = number_line((0.0, *positive_values(format)), 0.0, format.max_finite, width - 2, ascii_only=ascii_only)
        made += [("", ""), (f"The number line from 0 to {number(format.max_finite)}:", "italic")]
        made.append((f"{_INDENT}{line}", ""))
    return made


def _values(count: int) -> str:
    return f"{count if count < 10_000 else f'2^{math.log2(count):.0f}'} value{'s' if count > 1 else ''}"


def _axis(low: int, high: int, width: int) -> str:
    """Return the labels under the chart: the exponents of the first and the last binade, and of 1 if it has room."""
    left, right = f"2^{low}", f"2^{high}"
    if low == high:
        return left
    line = list(left.ljust(max(width, len(left) + len(right) + 1)))
    if low < 0 < high:
        place = round(-low / (high - low + 1) * width)
        if len(left) + 1 <= place and place + 2 <= len(line) - len(right):
            line[place] = "1"
    line[len(line) - len(right) :] = right
    return "".join(line)


def value_table(format: Format, width: int) -> list[Line]:
    """Return all values with their codes: a row an exponent field for floats, rows of equal length for tables.

    Raises ``AltgradError`` for formats of more than 16 bits.
    """
    check_listed(format)
    signed = isinstance(format, FloatFormat) and format.signed
    codes = range(2 ** (format.bits - int(signed)))
    shown = [number(format.value(code)) for code in codes]
    if isinstance(format, FloatFormat) and format.exponent_bits and format.mantissa_bits:
        made = [(f"Values by exponent{', for codes with the sign bit clear' if signed else ''}:", "italic")]
        size = 2**format.mantissa_bits
        labels = [_exponent_label(format, start // size) for start in range(0, len(shown), size)]
        return made + _grid(shown, format.bits, width, size, labels)
    heading = f"Values of the {len(shown)} codes{' with the sign bit clear' if signed else ''}:"
    return [(heading, "italic"), *_grid(shown, format.bits, width, len(shown), [""])]


def check_listed(format: Format) -> None:
    """Raise ``AltgradError`` for a format with too many values to list."""
    if format.bits > LISTED_BITS:
        raise AltgradError(
            f"'{format.name}' has {2**format.bits:,} values; lists end at {LISTED_BITS} bits. Leave out --values."
        )


def _exponent_label(format: FloatFormat, field: int) -> str:
    if field == 0:
        return "subnormal"
    if (field << format.mantissa_bits) > format.max_code:
        return "special"
    return f"2^{field - format.bias}"


def _grid(cells: Sequence[str], bits: int, width: int, size: int, labels: Iterable[str]) -> list[Line]:
    """Lay out rows of ``size`` cells, folded at a power of two; each line begins with its first code and its label."""
    labels = list(labels)
    digits = (bits + 3) // 4
    label = max(map(len, labels))
    head = 2 + digits + 2 + (label + 2 if label else 0)
    cell = max(map(len, cells)) + 2
    across = 1
    while across * 2 <= size and across * 2 * cell + head <= width:
        across *= 2
    made: list[Line] = []
    for row, start in enumerate(range(0, len(cells), size)):
        for place in range(start, min(start + size, len(cells)), across):
            named = f"  {labels[row] if place == start else '':>{label}}" if label else ""
            line = "".join(text.rjust(cell) for text in cells[place : min(place + across, start + size)])
            made.append((f"{_INDENT}0x{place:0{digits}X}{named}{line}", ""))
    return made
