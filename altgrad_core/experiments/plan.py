"""What an experiment would train: parameters, tokens, memory, plugins. Models are built without their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.runfile import PLUGIN_KINDS
from altgrad_core.experiments.schema import Experiment, RunConfig
from altgrad_core.plugins import Choice, Extension, Plugins
from altgrad_core.recipes.recipe import Recipe

if TYPE_CHECKING:
    from altgrad_core.training.data import TokenData, Workspace

FP32_BYTES = 4


@attrs.frozen(kw_only=True)
class PlannedSize:
    """What a run takes."""

    parameters: int
    """Trained numbers; shared ones count once."""
    linear_layers: int
    """Layers of the model of the kinds that the recipe names: linear ones, unless it says otherwise."""
    cast_layers: int
    """Those of them that the recipe casts."""
    backends: dict[str, int]
    """``emulated: why`` or ``native: why`` -> how many of the cast layers, on this machine's GPU or else its CPU."""
    unused_overrides: tuple[str, ...]
    """Overrides of the recipe that match no layer."""
    state_bytes: int
    """FP32 weights and gradients, and the optimizer's state; activations come on top."""
    train_tokens: int
    """Tokens of the training split."""
    vocab_size: int
    """Entries of the vocabulary."""


def tokens_per_step(config: RunConfig) -> int:
    """Return the tokens that one optimizer step reads."""
    block_size: int = config.model.options.block_size
    return config.train.batch_size * config.train.accumulate * block_size


def open_data(configs: Sequence[RunConfig], plugins: Plugins, workspace: Workspace) -> dict[str, TokenData]:
    """Return the data of each run by its name, prepared when it is not in the cache yet; equal choices are opened once.

    Raises ``AltgradError`` when data is missing, wrong, or too short for the run's block size.
    """
    from altgrad_core.training.data import check_lengths

    opened: list[tuple[Choice, TokenData]] = []  # options need not be hashable
    found: dict[str, TokenData] = {}
    for config in configs:
        data = next((data for choice, data in opened if choice == config.data), None)
        if data is None:
            data = plugins.get("dataset", config.data.kind).value(config.data.options, workspace)
            opened.append((config.data, data))
        check_lengths(data, config.model.options.block_size)
        found[config.name] = data
    return found


def measure(config: RunConfig, plugins: Plugins, data: TokenData) -> PlannedSize:
    """Return the size of a run: its model is built on the meta device and converted, no weight is allocated.

    Raises ``AltgradError`` for a recipe that does not go with the model or the optimizer.
    """
    import torch

    from altgrad_core.recipes.convert import convert
    from altgrad_core.recipes.step_casts import check_step_casts

    with torch.device("meta"):
        model = plugins.get("model", config.model.kind).value(config.model.options, data.vocab_size)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        _, summary = convert(model, config.recipe)
        check_step_casts(model, config.recipe)
    state = parameters * (2 * FP32_BYTES + _optimizer_bytes(config, plugins))
    return PlannedSize(
        parameters=parameters,
        linear_layers=len(summary.layers),
        cast_layers=sum(layer.converted for layer in summary.layers),
        backends={backend: len(names) for backend, names in summary.backends.items()},
        unused_overrides=summary.unused_overrides,
        state_bytes=round(state),
        train_tokens=len(data.train),
        vocab_size=data.vocab_size,
    )


def refuse_impossible(configs: Sequence[RunConfig], plugins: Plugins, data: Mapping[str, TokenData]) -> None:
    """Raise the ``AltgradError`` of a run that asks for native GEMMs which this machine, or its recipe, does not have.

    Other recipes are checked when their run begins: that takes torch, whose import the start of a command waits for.
    """
    for config in configs:
        if any(recipe.backend == "native" for recipe in (config.recipe, *(o.recipe for o in config.recipe.overrides))):
            try:
                measure(config, plugins, data[config.name])
            except AltgradError as error:
                raise AltgradError(f"The run '{config.name}' cannot train: {error}") from error


def _optimizer_bytes(config: RunConfig, plugins: Plugins) -> float:
    """Return the optimizer's bytes a parameter, measured on a step of a small layer; its state is cast as in the run."""
    import torch

    from altgrad_core.recipes.control import CastControl
    from altgrad_core.recipes.optimizer_state import OptimizerStateCast

    layer = torch.nn.Linear(16, 16, bias=False)
    build = plugins.get("optimizer", config.train.optimizer.kind).value
    optimizer = build(config.train.optimizer.options, layer, config.train.learning_rate, config.train.weight_decay)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    if config.recipe.optimizer_state is not None:
        OptimizerStateCast(layer, optimizer, config.recipe.optimizer_state, CastControl())()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(t.numel() * t.element_size() for t in tensors if t.dim() > 0) / layer.weight.numel()


def needed(experiment: Experiment, plugins: Plugins) -> list[Extension]:
    """Return what the runs use of the plugins, each once, in the order of first use."""
    found: dict[tuple[str, str], Extension] = {}

    def use(kind: str, name: str) -> None:
        extension = plugins.find(kind, name)
        if extension is not None:  # a format may be known by its grammar alone
            found.setdefault((kind, name), extension)

    def use_recipe(recipe: Recipe) -> None:
        for cast in recipe.all_casts().values():
            use("format", cast.format)
            use("scaling", cast.scaling.kind)
        for kind in recipe.layers:
            use("layer", kind)
        for override in recipe.overrides:
            use_recipe(override.recipe)

    for run in experiment.runs:
        choices = {
            "model": run.model,
            "data": run.data,
            "optimizer": run.train.optimizer,
            "backend": run.checkpoint.backend,
            "launcher": run.launcher,
        }
        for key, choice in choices.items():
            use(PLUGIN_KINDS[key], choice.kind)
        use_recipe(run.recipe)
        for probe in run.probes:
            use("probe", probe.kind)
        for sink in run.sinks:
            use("sink", sink.kind)
    return list(found.values())
