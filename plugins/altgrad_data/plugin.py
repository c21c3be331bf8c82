"""Registers the datasets ``stdlib``, ``text``, ``eurlex`` and ``tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_core.training.data import TokenData, Workspace

_fraction = attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.lt(1.0))


def _known_tokenizer(options: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if value != "bytes":
        from altgrad_data.tokenizers import check_name

        try:
            check_name(value)
        except AltgradError as error:
            raise ValueError(str(error)) from None


def _path(options: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if not value:
        raise ValueError("path must not be empty")


_EURLEX = (
    "data.path is missing: where is EURLEX57K (Chalkidis et al., ACL 2019)? Get it from "
    "http://nlp.cs.aueb.gr/software_and_datasets/EURLEX57K/datasets.zip or from Hugging Face (NLP-AUEB/eurlex, its "
    "Parquet files), then: altgrad run FILE --set data.path='\"datasets.zip\"' (a folder, .jsonl, .jsonl.gz, .zip, "
    ".parquet, or an http(s) URL of such a file)"
)


def _eurlex_path(options: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if not value:
        raise ValueError(_EURLEX)


@attrs.frozen(kw_only=True)
class StdlibOptions:
    """``[data]`` with ``kind = "stdlib"``: the modules and help topics of the running Python. Offline."""

    tokenizer: str = attrs.field(default="bytes", validator=_known_tokenizer)
    """``bytes``, or a tiktoken encoding such as ``gpt2``."""
    val_fraction: float = attrs.field(default=0.1, validator=_fraction)
    """Fraction of the text that is kept for validation."""
    max_bytes: int = attrs.field(default=8_000_000, validator=attrs.validators.ge(1))
    """Most bytes of text to use, spread over the whole library."""


@attrs.frozen(kw_only=True)
class TextOptions:
    """``[data]`` with ``kind = "text"``: UTF-8 text files."""

    path: str = attrs.field(validator=_path)
    """A file, a folder (all its ``*.txt`` and ``*.md``, at any depth) or a pattern such as ``books/**/*.rst``."""
    tokenizer: str = attrs.field(default="bytes", validator=_known_tokenizer)
    """``bytes``, or a tiktoken encoding such as ``gpt2``."""
    val_fraction: float = attrs.field(default=0.1, validator=_fraction)
    """Fraction of the text, at its end, that is kept for validation."""


@attrs.frozen(kw_only=True)
class EurlexOptions:
    """``[data]`` with ``kind = "eurlex"``: EURLEX57K, English EU legislation."""

    path: str = attrs.field(default="", validator=_eurlex_path)
    """A folder, a ``.jsonl``, ``.jsonl.gz``, ``.zip`` or ``.parquet`` file, or an http(s) URL of such a file."""
    tokenizer: str = attrs.field(default="bytes", validator=_known_tokenizer)
    """``bytes``, or a tiktoken encoding such as ``gpt2``."""
    val_fraction: float = attrs.field(default=0.1, validator=_fraction)
    """Fraction of the documents, the last ones, that are kept for validation when the source has no dev split."""
    attachments: bool = False
    """Whether signatures, footnotes and annexes belong to the text."""


@attrs.frozen(kw_only=True)
class TokensOptions:
    """``[data]`` with ``kind = "tokens"``: prepared token files."""

    path: str = attrs.field(validator=_path)
    """A folder with ``train.bin``, ``val.bin`` and ``meta.json``, as ``altgrad data prepare`` writes it."""


def build_stdlib(options: StdlibOptions, workspace: Workspace) -> TokenData:
    """Prepare ``stdlib``."""
    from altgrad_data.stdlib import build

    return build(options, workspace)


def build_text(options: TextOptions, workspace: Workspace) -> TokenData:
    """Prepare ``text``."""
    from altgrad_data.text import build

    return build(options, workspace)


def build_eurlex(options: EurlexOptions, workspace: Workspace) -> TokenData:
    """Prepare ``eurlex``."""
    from altgrad_data.eurlex import build

    return build(options, workspace)


def build_tokens(options: TokensOptions, workspace: Workspace) -> TokenData:
    """Open ``tokens``."""
    from altgrad_data.tokens import build

    return build(options, workspace)


@hookimpl
def altgrad_register_datasets(register: Register) -> None:
    """Register the datasets."""
    register("stdlib", build_stdlib, StdlibOptions)
    register("text", build_text, TextOptions)
    register("eurlex", build_eurlex, EurlexOptions)
    register("tokens", build_tokens, TokensOptions)
