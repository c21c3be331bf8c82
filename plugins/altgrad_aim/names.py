"""A metric's name as Aim takes it: a short name, and a context by which its explorers group and filter."""

from __future__ import annotations

from altgrad_core.training.events import SIMULATED

SUBSETS = ("train", "val")
_MARK = f"{SIMULATED}/"


def to_aim(metric: str) -> tuple[str, dict[str, str]]:
    """Split off the subset, as in ``train/loss``, or the layer, as in ``sqnr_db/blocks.0.mlp.up.input``.

    A simulated metric keeps the word in its name, ``simulated/loss``. A mean over layers, ``grad_cos_sim``, has no context.
    """
    prefix = _MARK if metric.startswith(_MARK) else ""
    first, _, last = metric.removeprefix(prefix).partition("/")
    if not (first and last):
        return metric, {}
    if first not in SUBSETS:
        return prefix + first, {"layer": last}
    if last.startswith(_MARK):  # the name of another metric, that of a simulation
        return metric, {}
    return prefix + last, {"subset": first}


def from_aim(name: str, context: dict[str, str]) -> str:
    """Return the metric that ``to_aim`` gave ``name`` and ``context``."""
    prefix = _MARK if context and name.startswith(_MARK) else ""
    rest = name.removeprefix(prefix)
    if "subset" in context:
        return f"{prefix}{context['subset']}/{rest}"
    return f"{prefix}{rest}/{context['layer']}" if "layer" in context else name
