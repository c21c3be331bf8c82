"""The contract with plugins, one page.

A plugin is a module (a package with a ``plugin.py``, or a single module) holding functions named after the hooks below,
each marked with ``altgrad_core.hookimpl``. Third parties announce it as an entry point in the group ``altgrad``::

    [project.entry-points.altgrad]
    myfp8 = "altgrad_format_myfp8"

(docs/plugins.md goes from nothing to a training with a format and a probe.)

A plugin imports nothing heavy at module top: ``build`` functions import torch inside. Every hook hands over a
``register`` function; what is registered is checked at the call, so that an error names the plugin.

``build`` functions get ``options``, an instance of the attrs class given as ``options=``; its fields are the keys
that ``experiments.toml`` accepts beside ``kind``, with the attribute docstring convention of the built-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from altgrad_core.deprecation import Deprecation

if TYPE_CHECKING:
    from altgrad_core.numerics.formats import Format

PROJECT = "altgrad"

HOOKSPEC_VERSION = 1
"""Counts up when a plugin has to change: a hook, or what a ``build`` function gets or returns, is no longer as it was. A
plugin says in its module which one it was written for, ``ALTGRAD_HOOKSPEC = 1``; ``altgrad plugins`` shows it."""
HOOKSPEC_OLDEST = 1
"""The oldest one whose plugins still work."""
DEPRECATED: dict[str, Deprecation] = {}
"""Hook -> what to use instead; ``altgrad plugins`` says so of a plugin that implements it. See docs/plugins.md."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RegisterFormat(Protocol):
    """``register(format)``: adds a number format under ``format.name``."""

    def __call__(self, format: Format) -> None:
        """Add it; raises when the name is taken or not lower case."""


class RegisterRecipe(Protocol):
    """``register(name, table)``: names a recipe; ``table`` is its long form as in ``experiments.toml``."""

    def __call__(self, name: str, table: Mapping[str, Any]) -> None:
        """Add it; the table is checked when a run uses it."""


class Register(Protocol):
    """``register(name, build, options=Options)``: adds an implementation under the ``kind`` that TOML files use."""

    def __call__(
        self,
        name: str,
        build: Callable[..., Any],
        options: type | None = None,
        *,
        needs: str | None = None,
        missing: str = "",
    ) -> None:
        """Add it; ``options`` is an attrs class, or None when there are none.

        ``needs`` is a package, by the name of its module, that ``build`` imports and that not everybody has installed.
        ``altgrad plugins`` and ``altgrad check`` say so where it is missing, and whoever asks for this is told. ``missing``
        is what they say instead, such as that there is no such package for this Python; without ``needs``, why it cannot be
        used here.
        """


@hookspec
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Add number formats: ``register(FloatFormat(name="myfp8", exponent_bits=4, mantissa_bits=3, ...))``."""


@hookspec
def altgrad_register_recipes(register: RegisterRecipe) -> None:
    """Add named recipes: ``register("hybrid", {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"})``."""


@hookspec
def altgrad_register_scaling(register: Register) -> None:
    """Add scaling policies: ``build(options, format) -> altgrad_core.numerics.scaling.ScalingPolicy``."""


@hookspec
def altgrad_register_layers(register: Register) -> None:
    """Add kinds of layers that ``convert`` converts, named in a recipe's ``layers``.

    ``build(module) -> type[altgrad_core.recipes.linear.CastLayer] | str | None`` is asked about every module of a model.
    It answers with the class to mix in, whose ``forward`` casts; with why a module of this kind is left alone; or with None
    for a module of another kind.
    """


@hookspec
def altgrad_register_models(register: Register) -> None:
    """Add models: ``build(options, vocab_size) -> torch.nn.Module`` with ``forward(tokens [B, T]) -> logits [B, T, V]``.

    ``options`` must have a field ``block_size``: the number of tokens T of a training sample.
    """


@hookspec
def altgrad_register_datasets(register: Register) -> None:
    """Add datasets: ``build(options, workspace) -> altgrad_core.training.data.TokenData``.

    ``workspace`` (``altgrad_core.training.data.Workspace``) has the cache folder and the way to say what is going on.
    """


@hookspec
def altgrad_register_optimizers(register: Register) -> None:
    """Add optimizers: ``build(options, model, learning_rate, weight_decay) -> torch.optim.Optimizer``."""


@hookspec
def altgrad_register_probes(register: Register) -> None:
    """Add probes: ``build(options) -> altgrad_core.training.probes.Probe``."""


@hookspec
def altgrad_register_sinks(register: Register) -> None:
    """Add metric sinks: ``build(options, run_folder) -> altgrad_core.training.events.MetricSink``."""


@hookspec
def altgrad_register_checkpoints(register: Register) -> None:
    """Add checkpoint backends: ``build(options, folder) -> altgrad_core.training.checkpoint.CheckpointBackend``."""


@hookspec
def altgrad_register_launchers(register: Register) -> None:
    """Add launchers: ``build(options) -> altgrad_core.experiments.launch.Launcher``, which start a run's worker."""
