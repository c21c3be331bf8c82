"""``altgrad``: the command line's entry point. Knows the verbs; each verb's module does the work."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from altgrad_core.cli import (
    bench,
    check,
    checkpoints,
    compare,
    data,
    export,
    fork,
    formats,
    new,
    plugins,
    replay,
    report,
    run,
    simulate,
    verify_native,
    verify_resume,
    watch,
)
from altgrad_core.errors import AltgradError

app = typer.Typer(
    name="altgrad",
    help="What does this number format do to my training, where, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run.run)
app.command()(check.check)
app.command()(formats.formats)
app.command()(plugins.plugins)
app.command()(compare.compare)
app.command()(report.report)
app.command()(export.export)
app.command()(watch.watch)
app.command()(simulate.simulate)
app.command()(checkpoints.checkpoints)
app.command()(replay.replay)
app.command()(fork.fork)
app.command(name="verify-resume")(verify_resume.verify_resume)
app.command(name="verify-native")(verify_native.verify_native)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(new.app, name="new")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"altgrad {version('altgrad')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Number-format experiments for transformer training."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a run failed, 2 wrong input, 130 interrupted."""
    debug = "--debug" in sys.argv  # before or after the verb
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except AltgradError as error:
        if debug:
            raise
        typer.echo(f"altgrad: {error}", err=True)
        sys.exit(error.exit_status)
