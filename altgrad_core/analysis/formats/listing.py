"""The table of all formats, family by family. Imports no torch."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence

from altgrad_core.analysis.formats.facts import Facts, facts_of
from altgrad_core.analysis.formats.layout import Column, fitting, lines
from altgrad_core.numerics.formats import Format
from altgrad_core.plugins import installed

_LONGEST = 9

COLUMNS = (
    Column("format", lambda f: f.name, left=True),
    Column("bits", lambda f: f"{f.bits:g}"),
    Column("E/M", lambda f: f.split, rank=2),
    Column("precision\nbits", lambda f: _short(f.significant_bits), rank=7),
    Column("digits", lambda f: f"{f.digits:.1f}", rank=3),
    Column("max", lambda f: _decimal(f.max_finite)),
    Column("min\nnormal", lambda f: _power(f.min_normal), rank=4),
    Column("min\npositive", lambda f: _power(f.min_positive)),
    Column("range\ndB", lambda f: f"{f.range_db:.0f}", rank=8),
    Column("specials", lambda f: f.specials, left=True, rank=1),
    Column("torch dtype", lambda f: f.torch_dtype or "-", left=True, rank=9),
    Column("native on", lambda f: f.native or "-", left=True, rank=5),
    Column("source", lambda f: f.source or "-", left=True, rank=6, least=18),
)


def families() -> list[tuple[str, list[Format]]]:
    """Return the registered formats by the package that registered them, widest first, with the package's sentence."""
    groups: dict[str, list[Format]] = {}
    for (kind, _), extension in installed().extensions.items():
        if kind == "format":
            groups.setdefault(extension.plugin, []).append(extension.value)
    return [(_title(plugin), sorted(found, key=lambda f: (-f.bits, f.name))) for plugin, found in groups.items()]


def _title(plugin: str) -> str:
    package = sys.modules.get(plugin)
    document = inspect.getdoc(package) if package is not None else None
    return (document.splitlines()[0].rstrip(".") if document else "") or plugin


def table(groups: Sequence[tuple[str, Sequence[Format]]], width: int) -> list[tuple[str, str]]:
    """Return (text, style) lines of the table, with the columns that fit into ``width`` characters."""
    rows = [(title, [facts_of(format) for format in found]) for title, found in groups]
    every: list[Facts] = [fact for _, found in rows for fact in found]
    return lines(fitting(COLUMNS, every, width), rows, width)


def _decimal(value: float) -> str:
    """Return a largest value in decimals, as a column of them is compared."""
    plain = f"{value:.9g}"
    return plain if float(plain) == value and len(plain) <= _LONGEST and "e" not in plain else f"{value:.4g}"


def _power(value: float | None) -> str:
    """Return a smallest value as a power of two, which nearly all are."""
    if value is None:
        return "-"
    fraction, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if fraction == 0.5 else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
