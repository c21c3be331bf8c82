"""Registers the sink ``aim``: each run becomes a run of an Aim repository, local or behind a tracking server."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_aim.sink import AimSink


def _place(options: Any, attribute: attrs.Attribute[str], value: str) -> None:
    scheme, found, rest = value.partition("://")
    if found and (scheme != "aim" or not rest):
        raise ValueError(f"expected a folder or the address of a tracking server, aim://host:port, got {value!r}")


@attrs.frozen(kw_only=True)
class AimOptions:
    """``[[sink]]`` with ``kind = "aim"``."""

    repo: str = attrs.field(default="", validator=_place)
    """The folder that holds the repository ``.aim``, or a tracking server as ``aim://host:port``; by default the folder that
    the runs folder is in, where ``aim up`` finds it."""


def build(options: AimOptions, run_folder: Path) -> AimSink:
    """Make each run one of an Aim repository; ``pip install 'altgrad[aim]'``, Python 3.11 or 3.12."""
    from altgrad_aim.sink import AimSink

    return AimSink(options.repo, run_folder)


def missing() -> str:
    """Return why Aim cannot be had for the running Python; empty when it can."""
    if sys.version_info < (3, 13):
        return ""
    return (
        f"the sink 'aim' needs Python 3.11 or 3.12, as there is no Aim for Python {platform.python_version()}: train with one "
        "of those, or take another sink"
    )


@hookimpl
def altgrad_register_sinks(register: Register) -> None:
    """Register ``aim``."""
    register("aim", build, AimOptions, needs="aim", missing=missing())
