"""Ways to train a model's linear layers: BF16, AltGrad's recipes, and the peers that are installed.

A variant takes a model, changes it in place, and returns it. All run under BF16 autocast over FP32 weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.convert import convert


@attrs.frozen(kw_only=True)
class Variant:
    """One way."""

    name: str
    """As tables show it."""
    change: Callable[[nn.Module], nn.Module]
    """Makes the model train that way; raises what is in the way."""
    compiled: bool = False
    """Whether ``torch.compile`` takes the model afterwards."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the changed model."""
        with quiet():
            changed = self.change(model)
            if self.compiled:
                # All models of a bench share their code, and past 8 versions of it the compiler would give up in silence.
                torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1024)
                changed.compile()
            return changed


def altgrad(spec: dict[str, Any]) -> Callable[[nn.Module], nn.Module]:
    """Return the change that AltGrad makes by a recipe; layers that a model has tied are none of the bench's business."""

    def change(model: nn.Module) -> nn.Module:
        return convert(model, spec)[0]

    return change


def torchao(**how: Any) -> Callable[[nn.Module], nn.Module]:
    """Return the change that torchao makes, by its recipe's name (``recipe``) or options of ``Float8LinearConfig``."""

    def change(model: nn.Module) -> nn.Module:
        float8 = _import("torchao.float8", "torchao")
        config = (
            float8.Float8LinearConfig.from_recipe_name(how["recipe"])
            if "recipe" in how
            else float8.Float8LinearConfig(**how)
        )

        def aligned(module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Linear) and not (module.in_features % 16 or module.out_features % 16)

        if isinstance(model, nn.Linear):
            if not aligned(model, ""):
                raise AltgradError("torchao takes layers whose inputs and outputs are multiples of 16")
            wrapped = nn.Sequential(model)
            float8.convert_to_float8_training(wrapped, config=config)
            return wrapped
        float8.convert_to_float8_training(model, config=config, module_filter_fn=aligned)
        return model

    return change


def transformer_engine(model: nn.Module) -> nn.Module:
    """Change linear layers to Transformer Engine's, in its delayed FP8 recipe (hybrid)."""
    te = _import("transformer_engine.pytorch", "transformer_engine[pytorch]")
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    for name in names:
        linear = model.get_submodule(name) if name else model
        assert isinstance(linear, nn.Linear)
        if linear.in_features % 16 or linear.out_features % 16:
            continue
        made = te.Linear(
            linear.in_features, linear.out_features, bias=linear.bias is not None, params_dtype=linear.weight.dtype
        )
        made.weight = linear.weight
        if linear.bias is not None:
            made.bias = linear.bias
        if not name:
            model = made
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made)
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with te.fp8_autocast(enabled=True):
            return plain(*args, **kwargs)

    model.forward = forward
    return model


def variants(*, compiled: bool = False) -> dict[str, Variant]:
    """Return name -> variant; the first, BF16, is what the others are compared with."""
    e4m3 = {"base": "e4m3fn", "scaling": "rowwise"}
    delayed = {"base": "hybrid", "scaling": "delayed"}
    changes: dict[str, Callable[[nn.Module], nn.Module]] = {
        "bf16": lambda model: model,
        "emulated tensorwise": altgrad({"base": "hybrid", "backend": "emulated"}),
        "native tensorwise": altgrad({"base": "hybrid", "backend": "native"}),
        "native delayed": altgrad({**delayed, "backend": "native"}),
        "native rowwise": altgrad({**e4m3, "backend": "native"}),
        "native e4m3fn": altgrad({"base": "e4m3fn", "backend": "native"}),
        "auto tensorwise": altgrad({"base": "hybrid", "backend": "auto"}),
        "torchao tensorwise": torchao(),
        "torchao rowwise": torchao(recipe="rowwise"),
        "transformer engine": transformer_engine,
    }
    return {name: Variant(name=name, change=change, compiled=compiled) for name, change in changes.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what peers say on import and conversion to themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def problem(error: BaseException) -> str:
    """Return an error in a line, for a table."""
    lines = str(error).strip().splitlines()
    if isinstance(error, AltgradError):
        return str(error)
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _import(name: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AltgradError(f"not installed or not working ({error}): pip install {package}") from error
