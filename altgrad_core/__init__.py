"""AltGrad: what does this number format do to my training, where, and why?

Importing this package does not import torch; the functions below do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from altgrad_core.deprecation import Deprecation
from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from altgrad_core.analysis.runs import Run, load_run
    from altgrad_core.api import run
    from altgrad_core.numerics.cast import quantize
    from altgrad_core.numerics.codes import decode, encode
    from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format, TableFormat
    from altgrad_core.numerics.registry import get_format
    from altgrad_core.numerics.stochastic import Draw
    from altgrad_core.recipes.convert import ConversionSummary, convert
    from altgrad_core.recipes.recipe import Recipe
    from altgrad_core.recipes.revert import revert
    from altgrad_core.recipes.step_casts import StepCasts
    from altgrad_core.training.observe import Observation, observe

_LAZY = {
    "BlockFormat": "altgrad_core.numerics.formats",
    "ConversionSummary": "altgrad_core.recipes.convert",
    "Draw": "altgrad_core.numerics.stochastic",
    "FloatFormat": "altgrad_core.numerics.formats",
    "Format": "altgrad_core.numerics.formats",
    "Observation": "altgrad_core.training.observe",
    "Recipe": "altgrad_core.recipes.recipe",
    "Run": "altgrad_core.analysis.runs",
    "StepCasts": "altgrad_core.recipes.step_casts",
    "TableFormat": "altgrad_core.numerics.formats",
    "convert": "altgrad_core.recipes.convert",
    "decode": "altgrad_core.numerics.codes",
    "encode": "altgrad_core.numerics.codes",
    "get_format": "altgrad_core.numerics.registry",
    "load_run": "altgrad_core.analysis.runs",
    "observe": "altgrad_core.training.observe",
    "quantize": "altgrad_core.numerics.cast",
    "revert": "altgrad_core.recipes.revert",
    "run": "altgrad_core.api",
}

__all__ = [
    "AltgradError",
    "BlockFormat",
    "ConversionSummary",
    "Draw",
    "FloatFormat",
    "Format",
    "Observation",
    "Recipe",
    "Run",
    "RunFailed",
    "StepCasts",
    "TableFormat",
    "convert",
    "decode",
    "encode",
    "get_format",
    "hookimpl",
    "load_run",
    "observe",
    "quantize",
    "revert",
    "run",
]


DEPRECATED: dict[str, tuple[Deprecation, str]] = {}
"""Name that is going -> what to say, and the module that has what it stands for."""


def __getattr__(name: str) -> Any:
    if name in DEPRECATED:
        deprecation, module = DEPRECATED[name]
        deprecation.warn()
        return getattr(importlib.import_module(module), name)
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'altgrad_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
