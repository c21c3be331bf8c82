"""Giving a checkpoint's state back to the parts of a run, with one clear error when it is not theirs.

A checkpoint can be whole and still not fit: the code of the model, of the optimizer or of a probe has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.training.checkpoint import Saved

_SHOWN = 5


class UnfitCheckpoint(AltgradError):
    """A checkpoint is whole, but of another model, optimizer or probe than the run's."""


def check_parameters(saved: Saved, model: nn.Module, state: Any) -> None:
    """Raise ``UnfitCheckpoint`` unless ``state`` has the model's parameters: names, order, shapes and dtypes.

    The order counts because an optimizer knows its parameters by their number only.
    """
    if not isinstance(state, Mapping):
        raise _unfit(saved, "model", "there is no state of a model in it")
    here = {name: parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    problems = [f"{name} is missing" for name in here if not isinstance(state.get(name), torch.Tensor)]
    if not problems:
        problems = [
            f"{name} is {_text(state[name])} there, {_text(parameter)} here"
            for name, parameter in here.items()
            if _text(state[name]) != _text(parameter)
        ]
    if not problems and list(here) != [name for name in state if name in here]:
        problems = ["its parameters are in another order"]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise _unfit(saved, "model", "; ".join(problems[:_SHOWN]) + more)


def restore(saved: Saved, state: Mapping[str, Any], parts: Mapping[str, Callable[[Any], object]]) -> None:
    """Hand each part its state, in the order of ``parts``; raises ``UnfitCheckpoint`` for the first that refuses it."""
    for name, load in parts.items():
        try:
            load(state[name])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise _unfit(saved, name, f"{type(error).__name__}: {error}") from error


def _unfit(saved: Saved, part: str, why: str) -> UnfitCheckpoint:
    return UnfitCheckpoint(
        f"The checkpoint {saved.path} is whole, but does not fit this run's {part}: {why}. Other code wrote it than runs "
        "now (env.json names the versions and the commit). Restore that code, or start over with --fresh, which keeps "
        "the old folder aside."
    )


def _text(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
