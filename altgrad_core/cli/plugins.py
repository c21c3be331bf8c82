"""``altgrad plugins``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from altgrad_core.plugins import Extension, PluginRow, Plugins

_EVERY_COLUMN = 110
_STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red", "disabled": "dim"}


def plugins(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one plugin with the options of what it offers.")
    ] = None,
    checked: Annotated[
        str | None,
        typer.Argument(
            metavar="[check NAME]", help="Run the conformance suites on a plugin, or on kind/name.", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For check: an option of what is checked, as in TOML."),
    ] = None,
    cannot: Annotated[
        list[str] | None,
        typer.Option("--cannot", metavar="CLAUSE=REASON", help="For check: a clause that does not hold, and why."),
    ] = None,
) -> None:
    """List what is installed, from where, and what it offers: ok, missing, broken (why), disabled.

    altgrad plugins check NAME runs the conformance suites on what a plugin offers: exit status 0 when it keeps them, 1 when
    not, 2 when there is nothing to check.
    """
    from rich.console import Console

    from altgrad_core.cli.plugincheck import check
    from altgrad_core.errors import AltgradError, unknown
    from altgrad_core.hookspecs import HOOKSPEC_VERSION
    from altgrad_core.plugins import installed

    console = Console(highlight=False)
    if name == "check":
        check(console, checked, set_ or [], cannot or [])
        return
    for given, what in ((checked, f"a second name, '{checked}'"), (set_, "--set"), (cannot, "--cannot")):
        if given:
            raise AltgradError(f"{what} goes with check: altgrad plugins check NAME.")
    found = installed()
    if name is None:
        console.print(plugins_table(found, console.width))
        console.print(f"Hook specification {HOOKSPEC_VERSION} (docs/plugins.md).", soft_wrap=True)
        if console.width < _EVERY_COLUMN:
            console.print("altgrad plugins NAME shows where one is from, and its version.", soft_wrap=True)
        return
    rows = [row for row in found.rows if row.name == name]
    if not rows:
        raise AltgradError(unknown("plugin", name, {row.name for row in found.rows}))
    for row in rows:
        console.print("\n".join(_plugin_lines(found, row)), markup=False, soft_wrap=True)


def plugins_table(found: Plugins, width: int) -> Table:
    """Return the table of all plugins; in a narrow terminal without source and version, so that what they offer has room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    wide = width >= _EVERY_COLUMN
    for header in ("name", "source", "version", "status") if wide else ("name", "status"):
        table.add_column(header, no_wrap=True)
    table.add_column("offers, or why not", overflow="fold")
    for row in found.rows:
        offers = "; ".join(f"{kind} {', '.join(sorted(names))}" for kind, names in row.offers.items())
        table.add_row(
            Text(row.name),
            *([Text(row.source), Text(row.version)] if wide else []),
            Text(row.status, style=_STYLES[row.status]),
            Text("; ".join(filter(None, (row.note, row.reason or offers or "nothing")))),
        )
    return table


def _plugin_lines(found: Plugins, row: PluginRow) -> list[str]:
    lines = [f"{row.name} {row.version}, {row.source}: {row.status}{f' ({row.reason})' if row.reason else ''}"]
    lines += [f"  written for hook specification {row.hookspec}"] if row.hookspec is not None else []
    lines += [f"  {row.note}"] if row.note else []
    for kind, names in row.offers.items():
        for name in sorted(names):
            lines += _offer_lines(found.get(kind, name))
    return lines


def _offer_lines(extension: Extension) -> list[str]:
    import attrs

    from altgrad_core.spelling import shown
    from altgrad_core.structure import unstructure

    lines = [f"  {extension.kind} {extension.name}"]
    if extension.kind == "recipe":
        lines[0] += f" = {shown(dict(extension.value), limit=None)}"
    for field in attrs.fields(extension.options):
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            text = "computed default"
        elif default is attrs.NOTHING:
            text = "required"
        else:
            text = "not set" if default is None else shown(unstructure(default))
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        lines.append(f"    {field.name}: {kind} = {text}")
    return lines
