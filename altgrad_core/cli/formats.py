"""``altgrad formats``: the number formats, one in full, several side by side. Torch is imported where tensors are cast."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from altgrad_core.errors import AltgradError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from altgrad_core.analysis.formats.signals import Signal
    from altgrad_core.numerics.formats import Format

_SMALL_BITS = 8
_SAMPLES = 1 << 20  # analysis.formats.signals.SAMPLES, which is not imported for the sake of --help
_EVERY_COLUMN = 150


def formats(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Formats: none for the table of all, one for its page, several side by side.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="List the values of a format of up to 16 bits.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", metavar="X,X,...", help="What these numbers are cast to, and the error.")
    ] = None,
    scale: Annotated[float, typer.Option(help="For --at: cast X / scale, and multiply back.")] = 1.0,
    sqnr: Annotated[
        bool, typer.Option("--sqnr", help="Signal to quantization-noise ratio on standard distributions, in dB.")
    ] = False,
    tensor: Annotated[
        str | None,
        typer.Option("--tensor", metavar="FILE[:NAME]", help="The same on a tensor: .safetensors, .npy, .pt."),
    ] = None,
    scaling: Annotated[
        str, typer.Option(help="For --sqnr: current (by the largest magnitude), best (power of two) or none.")
    ] = "current",
    samples: Annotated[int, typer.Option(help="For --sqnr: numbers drawn of each distribution.")] = _SAMPLES,
    seed: Annotated[int, typer.Option(help="For --sqnr: seed of the numbers.")] = 0,
    rounding: Annotated[str, typer.Option(help="Rounding mode of the casts.")] = "nearest_even",
    saturation: Annotated[str, typer.Option(help="Saturation mode of the casts.")] = "finite",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the named formats: .png, .svg or .html.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the number formats; show one in full; compare several at given numbers and by their noise."""
    from rich.console import Console

    from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS
    from altgrad_core.numerics.registry import get_format

    for what, name, known in (("rounding", rounding, ROUNDINGS), ("saturation", saturation, SATURATIONS)):
        if name not in known:
            raise AltgradError(unknown(what, name, known))
    found = [get_format(name) for name in names or []]
    noise = sqnr or tensor is not None
    _check(found, values=values, at=at, plot=plot)
    shows_numbers = at is not None or (len(found) > 1 and not noise and plot is None)
    shows_casts = noise or shows_numbers or plot is not None
    for option, given, applies, where in (
        ("--scale", scale != 1.0, shows_numbers, "--at"),
        ("--scaling", scaling != "current", noise, "--sqnr or --tensor"),
        ("--samples", samples != _SAMPLES, sqnr, "--sqnr"),
        ("--seed", seed != 0, sqnr, "--sqnr"),
        ("--rounding", rounding != "nearest_even", shows_casts, "--at, --sqnr, --tensor or --plot"),
        ("--saturation", saturation != "finite", shows_casts, "--at, --sqnr, --tensor or --plot"),
    ):
        if given and not applies:
            raise AltgradError(f"{option} changes nothing here; it goes with {where}.")
    modes: Any = {"rounding": rounding, "saturation": saturation}
    console = Console(highlight=False)
    answer: dict[str, Any] = {}
    if noise:
        if not found:
            found = _small()
        signals = _signals(sqnr, tensor, samples, seed)
        answer.update(_noise(console, found, signals, scaling, modes, quiet=json_))
        answer.update({"samples": signals[0].values.numel(), "seed": seed} if sqnr else {})
    if shows_numbers:
        answer.update(_points(console, found, at, scale, modes, quiet=json_))
    if plot is not None:
        from altgrad_core.analysis.formats import figure

        figure.write(plot, found, tensor=tensor is not None, **modes)
        if not json_:
            console.print(f"Wrote {plot}", markup=False, soft_wrap=True)
    elif not answer and not json_:
        _pages(console, found, values=values)
    if json_:
        typer.echo(json.dumps({**_facts(found, values=values), **answer, **modes}, indent=2, ensure_ascii=False))


def _check(found: list[Format], *, values: bool, at: str | None, plot: Path | None) -> None:
    for option, given in (("--at", at is not None), ("--plot", plot is not None)):
        if given and not found:
            raise AltgradError(f"{option} needs the names of formats: altgrad formats e4m3fn e5m2 {option} ...")
    if values and len(found) != 1:
        raise AltgradError(f"--values lists one format: altgrad formats NAME --values; {len(found)} are named.")


def _pages(console: Console, found: list[Format], *, values: bool) -> None:
    from altgrad_core.analysis.formats import listing
    from altgrad_core.analysis.formats.layout import folded, show
    from altgrad_core.analysis.formats.page import page
    from altgrad_core.plugins import installed

    if found:
        show(console, page(found[0], console.width, ascii_only=console.options.ascii_only, values=values))
        return
    show(console, listing.table(listing.families(), console.width))
    said = [
        "Any e<E>m<M> works too: no suffix has Inf and NaN at the top exponent (all codes finite if E <= 1 or M = 0), fn "
        "has no Inf, fnuz no Inf and no -0, f is finite throughout; and any binary<K>p<P>{s|u}{e|f} of IEEE P3109.",
        "What OCP and hardware documents call E4M3 is e4m3fn here. altgrad formats NAME shows one in full.",
    ]
    if console.width < _EVERY_COLUMN:
        said.append(f"A terminal of {_EVERY_COLUMN} columns or more shows what is left out here; so does --json.")
    show(console, [("", ""), *folded([*said, installed().hint().strip()], console.width)])


def _points(
    console: Console, found: list[Format], at: str | None, scale: float, modes: Any, *, quiet: bool
) -> dict[str, Any]:
    from altgrad_core.analysis.formats import compare, listing
    from altgrad_core.analysis.formats.layout import folded, show
    from altgrad_core.numerics.formats import BlockFormat

    magnitudes = compare.MAGNITUDES if at is None else compare.parse_magnitudes(at)
    cast = compare.points(found, magnitudes, scale=scale, **modes)
    if not quiet:
        if len(found) > 1:
            show(console, [*listing.table([("", found)], console.width), ("", "")])
        show(console, compare.table(cast, console.width))
        said = [f"Rounding {modes['rounding']}, saturation {modes['saturation']}, scale {scale:.9g}."]
        if any(isinstance(format, BlockFormat) for format in found):
            ignored = "" if scale == 1 else ", whatever --scale says"
            said.append(f"In a block format each number is alone in its block, under the block's own scale{ignored}.")
        show(console, [("", ""), *folded(said, console.width)])
    return {"at": [_plain(point.as_dict()) for point in cast], "scale": scale}


def _signals(sqnr: bool, tensor: str | None, samples: int, seed: int) -> list[Signal]:
    from altgrad_core.analysis.formats import signals

    read = [] if tensor is None else [signals.from_file(tensor)]
    return [*(signals.distributions(samples, seed) if sqnr else []), *read]


def _noise(
    console: Console, found: list[Format], signals: list[Signal], scaling: str, modes: Any, *, quiet: bool
) -> dict[str, Any]:
    from altgrad_core.analysis.formats import sqnr
    from altgrad_core.analysis.formats.layout import folded, show

    if scaling not in sqnr.SCALINGS:
        raise AltgradError(unknown("scaling", scaling, sqnr.SCALINGS))
    chosen: Any = scaling
    rows = sqnr.measure(found, signals, scaling=chosen, **modes)
    if not quiet:
        said = [f"{signal.name}: {signal.meaning}; {signal.values.numel():,} numbers" for signal in signals]
        said += sqnr.legend(found, chosen, modes["rounding"], modes["saturation"])
        show(console, [("SQNR in dB", "italic"), *sqnr.table(rows, signals, console.width), ("", "")])
        show(console, folded(said, console.width))
    named = {row.format: dict(zip((s.name for s in signals), row.sqnr_db, strict=True)) for row in rows}
    return {"sqnr_db": _plain(named), "scaling": scaling}


def _small() -> list[Format]:
    """Return the registered formats of up to 8 bits that a tensor with negative numbers can be cast to."""
    from altgrad_core.analysis.formats import listing

    return [f for _, family in listing.families() for f in family if f.bits <= _SMALL_BITS and f.signed]


def _facts(found: list[Format], *, values: bool) -> dict[str, Any]:
    from altgrad_core.analysis.formats import listing
    from altgrad_core.analysis.formats.facts import facts_of
    from altgrad_core.analysis.formats.page import check_listed

    shown = found or [format for _, family in listing.families() for format in family]
    answer: dict[str, Any] = {"formats": [_plain(facts_of(format).as_dict()) for format in shown]}
    if values:
        check_listed(shown[0])
        answer["values"] = _plain(shown[0].values())
    return answer


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: what is not finite becomes a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
