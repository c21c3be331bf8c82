"""Registers the sink ``wandb``: a run's metrics, settings, alerts and outcome in Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_wandb.sink import WandbSink

_NOT_IN_NAMES = "/\\#?%:"  # of projects, by W&B
_LONGEST = {"project": 128, "tag": 64}


def _project(options: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if not 1 <= len(value) <= _LONGEST["project"] or set(value) & set(_NOT_IN_NAMES):
        raise ValueError(f"expected 1 to {_LONGEST['project']} characters, none of {_NOT_IN_NAMES}, got {value!r}")


def _tags(options: Any, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    for tag in value:
        if not 1 <= len(tag) <= _LONGEST["tag"]:
            raise ValueError(f"expected tags of 1 to {_LONGEST['tag']} characters, got {tag!r}")


@attrs.frozen(kw_only=True)
class WandbOptions:
    """``[[sink]]`` with ``kind = "wandb"``."""

    project: str = attrs.field(default="altgrad", validator=_project)
    """Project of the runs."""
    entity: str | None = None
    """User or team that the project belongs to; the default one of the W&B account when not given."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """``online``, ``offline`` (for ``wandb sync`` later) or ``disabled``; what W&B itself is set to when not given."""
    group: str | None = None
    """Group of the runs; the experiment's name when not given."""
    job_type: str = "train"
    """What kind of run it is, for filters."""
    tags: tuple[str, ...] = attrs.field(default=(), validator=_tags)
    """Tags of the runs; a simulation has the tag ``simulated``, too."""
    notes: str | None = None
    """A description, in Markdown."""
    report: bool = False
    """Whether a run that is done leaves the experiment's report page, as it is then, as an artifact."""
    weights: bool = False
    """Whether a run that is done leaves its final weights as an artifact."""


def build(options: WandbOptions, run_folder: Path) -> WandbSink:
    """Log to Weights & Biases, one W&B run a run, with rows by step; without a server into the run's folder, for later."""
    from altgrad_wandb.sink import WandbSink

    return WandbSink(options, run_folder)


@hookimpl
def altgrad_register_sinks(register: Register) -> None:
    """Register ``wandb``."""
    register("wandb", build, WandbOptions, needs="wandb")
