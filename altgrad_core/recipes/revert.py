"""``revert(model)``: what ``convert`` and ``StepCasts`` did to a model is undone, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.control import controls_of
from altgrad_core.recipes.linear import CastLayer

_SWITCHED = "_altgrad_switched"
_HOOKS = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


def of_altgrad(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook on a module, so that ``revert`` knows it, in copies of the model, too."""
    hook.of_altgrad = True  # type: ignore[attr-defined]
    return hook


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has when it is not converted."""
    return type(module).original if isinstance(module, CastLayer) else type(module)


def size_of(module: nn.Module) -> int:
    """Return how many parameters a layer has."""
    return sum(parameter.numel() for parameter in module.parameters())


def switch(module: nn.Module, attribute: str, value: Any) -> None:
    """Set an attribute of a module until the model is reverted."""
    module.__dict__.setdefault(_SWITCHED, {})[attribute] = getattr(module, attribute)
    setattr(module, attribute, value)


def revert(model: nn.Module) -> nn.Module:
    """Give a converted model its original layers back, in place, and return it.

    Parameters are the same objects with what training made of them; classes, attributes, ``state_dict`` keys and hooks are
    those from before ``convert``. A ``StepCasts`` of the model is of no use afterwards. Raises ``AltgradError`` when nothing
    in the model is converted.
    """
    controls = controls_of(model)
    if not controls:
        raise AltgradError("Nothing in this model is converted, so there is nothing to revert.")
    for control in controls:
        for handle in control.handles:
            handle.remove()
    for module in list(model.modules()):
        _strip(module)
    return model


def _strip(module: nn.Module) -> None:
    if isinstance(module, CastLayer):
        for operand in module.operands:
            module._modules.pop(f"{operand}_cast", None)
            module.__dict__.pop(f"{operand}_cast", None)
        for name in ("cast_name", "remembers", "fits_bfloat16", "decision", "_decide"):
            module.__dict__.pop(name, None)
        object.__setattr__(module, "__class__", type(module).original)
    module.__dict__.pop("cast_control", None)
    for attribute, value in module.__dict__.pop(_SWITCHED, {}).items():
        setattr(module, attribute, value)
    for name, companions in _HOOKS.items():
        hooks = getattr(module, name)
        for key in [key for key, hook in hooks.items() if getattr(hook, "of_altgrad", False)]:
            del hooks[key]
            for companion in companions:
                getattr(module, companion).pop(key, None)
