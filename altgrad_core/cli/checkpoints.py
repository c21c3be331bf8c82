"""``altgrad checkpoints``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from altgrad_core.analysis.checkpoints import Listing

_WIDTH = 124


def checkpoints(
    run: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/mine/e5m2.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and check every byte.")] = False,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Write the model's weights to this new safetensors file."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="NAME", help="Whose weights: a step, a name, latest (default), or best."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the checkpoints of a run, also while it is trained; exit status 1 when one is found damaged."""
    import json

    from rich.console import Console

    from altgrad_core.analysis.checkpoints import export_weights, list_checkpoints
    from altgrad_core.errors import AltgradError

    if checkpoint is not None and weights is None:
        raise AltgradError("--checkpoint says whose weights are written and needs --weights FILE.")
    if weights is not None:
        saved = export_weights(run, weights, checkpoint or "latest")
        typer.echo(f"{weights}: the weights of {saved.name} (state {saved.state_hash[:12]})")
        return
    listing = list_checkpoints(run, verify=verify)
    if json_:
        found = {"run": str(run), "verified": verify, "lost_pointers": dict(listing.lost)}
        typer.echo(json.dumps({**found, "checkpoints": [row.as_dict() for row in listing.rows]}, indent=2))
    else:
        console = Console(highlight=False)
        console.width = max(console.width, _WIDTH)  # a narrow terminal folds the lines, rather than the names
        console.print(checkpoints_table(listing), crop=False)
        for line in _remarks(listing):
            typer.echo(line)
    if listing.damaged:
        raise typer.Exit(1)


def checkpoints_table(listing: Listing) -> Table:
    """Return the checkpoints as a table."""
    import time

    from rich.table import Table

    from altgrad_core.analysis.table import MISSING, number
    from altgrad_core.console.words import size

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("checkpoint", "kind", "kept", "saved"):
        table.add_column(header, no_wrap=True)
    for header in ("size", "loss", "val loss"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("state", "pointers", "whole" if listing.verified else "files"):
        table.add_column(header, no_wrap=True)
    for row in listing.rows:
        saved = row.saved
        table.add_row(
            row.name,
            row.kind,
            row.kept,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(saved.saved_at)) if saved else MISSING,
            size(saved.bytes) if saved else MISSING,
            number(row.loss, 4),
            number(row.val_loss, 4),
            saved.state_hash[:12] if saved else MISSING,
            " ".join(name for name, named in (("latest", row.latest), ("best", row.best)) if named),
            "damaged" if row.problem else "yes" if listing.verified else "sizes ok",
        )
    return table


def _remarks(listing: Listing) -> list[str]:
    lines = [row.problem or "" for row in listing.damaged]
    lines += [f"The pointer {pointer} names {name}, which is not there." for pointer, name in listing.lost.items()]
    if not listing.rows:
        lines.append(f"{listing.run.folder} has no checkpoints yet; its state: {listing.run.status}.")
    elif listing.verified and not listing.damaged:
        lines.append(f"All {len(listing.rows)} checkpoints are whole.")
    if listing.rows and not listing.verified:
        lines.append("Manifests and sizes were checked; --verify reads every byte.")
    return lines
