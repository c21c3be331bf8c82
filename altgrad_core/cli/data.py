"""``altgrad data prepare``: text to token files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Prepare training data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``prepare`` a command of its own: typer folds an app with a single command into it."""


@app.command()
def prepare(
    kind: Annotated[str, typer.Argument(help="Dataset: stdlib, text, eurlex, or what a plugin adds.")],
    *,
    out: Annotated[Path, typer.Option(help="New folder for train.bin, val.bin and meta.json.")],
    path: Annotated[str | None, typer.Option(help="File, folder, pattern or URL of the text.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes, or a tiktoken encoding such as gpt2.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Fraction kept for validation.")] = None,
    attachments: Annotated[bool | None, typer.Option(help="Keep signatures, footnotes and annexes (eurlex).")] = None,
) -> None:
    """Turn text into token files, which ``data = { kind = "tokens", path = "DIR" }`` reads."""
    from altgrad_core.plugins import installed
    from altgrad_core.structure import structure
    from altgrad_core.training.data import Workspace, copy_tokens, free_folder

    dataset = installed().get("dataset", kind)
    given = {"path": path, "tokenizer": tokenizer, "val_fraction": val_fraction, "attachments": attachments}
    options: Any = structure({key: value for key, value in given.items() if value is not None}, dataset.options)
    free_folder(out)
    data = dataset.value(options, Workspace(say=typer.echo))
    copy_tokens(data, out)
    typer.echo(
        f"{out}: {len(data.train):,} training and {len(data.val):,} validation tokens from {data.documents:,} "
        f"documents (tokenizer {data.tokenizer}, vocabulary {data.vocab_size:,})"
    )
