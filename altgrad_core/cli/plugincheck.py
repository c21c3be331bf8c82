"""``altgrad plugins check``: the conformance suites, run on what a plugin offers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from altgrad_core.errors import AltgradError, nearest, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from altgrad_core.plugins import Extension, Plugins
    from altgrad_core.testing.plugincheck import CheckResult

_STYLES = {"passed": "green", "skipped": "dim", "failed": "bold red"}


def check(console: Console, target: str | None, settings: Sequence[str], cannot: Sequence[str]) -> None:
    """Check what ``target`` names, and exit: 0 it keeps its suites, 1 it does not, 2 there is nothing to check."""
    if target is None:
        raise AltgradError(
            "Which one? altgrad plugins check NAME, with the name of a plugin, or kind/name: format/e5m2."
        )
    from altgrad_core.plugins import installed

    chosen = _chosen(installed(), target)
    try:
        from altgrad_core.testing.plugincheck import SUITES, check_extension, clauses
    except ModuleNotFoundError as error:
        raise AltgradError(
            f"The conformance suites need the package '{error.name}', which is not installed: pip install 'altgrad[test]'"
        ) from None
    options, off = _table(settings, "--set KEY=VALUE, a value as in TOML"), _reasons(cannot)
    known = {clause for kind in {e.kind for e in chosen} & SUITES.keys() for clause in clauses(kind)}
    for clause in off:
        if clause not in known:
            raise AltgradError(unknown("clause", clause, known))
    ran = failed = False
    for extension in chosen:
        title = f"{extension.kind}/{extension.name}"
        why_not = _why_not(extension, options)
        if why_not:
            console.print(f"{title}: not checked: {why_not}", markup=False, soft_wrap=True)
            continue
        started = time.perf_counter()
        results = check_extension(extension, options, off)
        assert results is not None
        ran = True
        failed |= _show(console, title, results, time.perf_counter() - started)
    if not ran:
        raise AltgradError(f"Nothing of '{target}' was checked.")
    if failed:
        raise typer.Exit(1)


def _show(console: Console, title: str, results: list[CheckResult], seconds: float) -> bool:
    """Print a row for each check and a line for all; return whether one failed."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("checks", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for result in results:
        outcome = Text(result.outcome, style=_STYLES[result.outcome])
        table.add_row(Text(result.name), outcome, f"{result.checks:,}", Text(result.reason))
    console.print(table)
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in _STYLES}
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    total = sum(result.checks for result in results)
    console.print(f"{title}: {said}; {total:,} checks in {seconds:.1f} s", markup=False, soft_wrap=True)
    return bool(counts["failed"])


def _chosen(plugins: Plugins, target: str) -> list[Extension]:
    """Return what a plugin offers, or the one thing that ``kind/name`` names."""
    from altgrad_core.plugins import KINDS

    kind, slash, name = target.partition("/")
    if slash:
        if kind not in KINDS.values():
            raise AltgradError(unknown("kind of plugin", kind, KINDS.values()))
        return [plugins.get(kind, name)]
    rows = [row for row in plugins.rows if row.name == target]
    if not rows:
        offered = [e for (_, name), e in plugins.extensions.items() if name == target]
        if offered:
            ways = ", ".join(f"{e.kind}/{e.name}" for e in offered)
            raise AltgradError(
                f"No plugin is called '{target}'; what is called so is {ways}: altgrad plugins check {ways}"
            )
        names = {row.name for row in plugins.rows}
        raise AltgradError(
            f"Unknown plugin '{target}'.{nearest(target, names)} Give a plugin that `altgrad plugins` lists, or "
            "one thing that a plugin offers, such as format/e5m2."
        )
    (row,) = rows[:1]
    if not row.offers:
        raise AltgradError(f"The plugin '{target}' is {row.status} and offers nothing: {row.reason}.")
    return [plugins.get(kind, name) for kind, names in row.offers.items() for name in sorted(names)]


def _why_not(extension: Extension, options: dict[str, Any]) -> str:
    """Return why there is nothing to run, empty when there is."""
    import attrs

    from altgrad_core.testing.plugincheck import SUITES

    if extension.kind not in SUITES:
        return f"there is no suite for a {extension.kind}"
    if extension.missing:
        return extension.missing
    if extension.kind == "format":
        from altgrad_core.numerics.formats import BlockFormat

        if isinstance(extension.value, BlockFormat):
            return f"a block format is its elements, format/{extension.value.element.name}, and its scaling"
        return ""
    needed = [field.name for field in attrs.fields(extension.options) if field.default is attrs.NOTHING]
    missing = [name for name in needed if name not in options]
    return f"it needs options: {' '.join(f'--set {name}=...' for name in missing)}" if missing else ""


def _table(settings: Sequence[str], form: str) -> dict[str, Any]:
    import tomli

    table: dict[str, Any] = {}
    for setting in settings:
        try:
            table.update(tomli.loads(setting))
        except tomli.TOMLDecodeError as error:
            raise AltgradError(f"Expected {form}, got '{setting}': {error}.") from None
    return table


def _reasons(cannot: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in cannot]
    for clause, _, reason in pairs:
        if not clause or not reason:
            raise AltgradError(f"Expected --cannot CLAUSE=REASON, got '{clause}'. The reason is shown with the result.")
    return {clause: reason for clause, _, reason in pairs}
