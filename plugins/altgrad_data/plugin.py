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


@attrs.frozen(kw_only=True)
class StdlibOptions:
    """``[data]`` with ``kind = "stdlib"``: the modules and help topics of the running Python. Offline."""

    tokenizer: str = attrs.field(default="bytes", validator=_known_tokenizer)
    """``bytes``, or a tiktoken encoding such as ``gpt2``."""
    val_fraction: float = attrs.field(default=0.1, validator=_fraction)
    """Fraction of the text that is kept for validation."""
    max_bytes: int = attrs.field(default=8_000_000, validator=attrs.validators.ge(1))
    """Most bytes of text to use, spread over the whole library."""


def build_stdlib(options: StdlibOptions, workspace: Workspace) -> TokenData:
    """Prepare ``stdlib``."""
    from altgrad_data.stdlib import build

    return build(options, workspace)


@hookimpl
def altgrad_register_datasets(register: Register) -> None:
    """Register the datasets."""
    register("stdlib", build_stdlib, StdlibOptions)
