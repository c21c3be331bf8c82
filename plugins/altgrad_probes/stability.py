"""Per cast (``layer.operand``), over all that was cast in the step, from the statistics that the cast itself counts:

| metric | definition | unit |
| --- | --- | --- |
| ``overflow_rate`` | finite elements clamped to the largest finite value / elements | fraction |
| ``underflow_rate`` | non-zero elements that became zero / elements | fraction |
| ``nan_count``, ``inf_count`` | NaN and infinite elements before the cast | elements |
| ``sqnr_db`` | 10 log10(signal power / error power) of the cast | dB |
| ``dynamic_range_db`` | 20 log10(amax / smallest non-zero magnitude) before the cast | dB |

and per operand of a layer, of its last cast in the step:

| metric | definition | unit |
| --- | --- | --- |
| ``scale_log2`` | log2 of the decode scale; its mean over the rows or blocks that have one each | octaves |
"""

from __future__ import annotations

import torch

from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.recipes.linear import CastLayer
from altgrad_core.training.probes import Probe, StepContext


class StabilityProbe(Probe):
    """The probe ``stability``; switches the casts' statistics on for its steps only.

    The casts of forward and backward are read before the update, which a non-finite step does not come to; those of the
    optimizer's state and of stored weights after it.
    """

    def before_forward(self, context: StepContext) -> None:
        """Switch the statistics on."""
        _collect(context)

    def after_backward(self, context: StepContext) -> None:
        """Switch them off and read them, all casts at once, and the scales."""
        _measure(context)
        _measure_scales(context)

    def before_update(self, context: StepContext) -> None:
        """Switch them on for what is cast after the update."""
        _collect(context)

    def after_update(self, context: StepContext) -> None:
        """Switch them off and read them."""
        _measure(context)


def _collect(context: StepContext) -> None:
    for control in context.controls:
        control.take()
        control.collecting = True


def _measure(context: StepContext) -> None:
    taken: dict[str, torch.Tensor] = {}
    for control in context.controls:
        control.collecting = False
        taken |= control.take()
    if not taken:
        return
    names = list(taken)
    column = dict(zip(FIELDS, torch.stack(list(taken.values())).double().unbind(dim=1), strict=True))
    add = context.measurements.add_layers
    add("overflow_rate", names, column["overflow"] / column["elements"])
    add("underflow_rate", names, column["underflow"] / column["elements"])
    add("nan_count", names, column["nan"])
    add("inf_count", names, column["inf"])
    add("sqnr_db", names, 10 * torch.log10(column["signal_power"] / column["error_power"]))
    add("dynamic_range_db", names, 20 * torch.log10(column["amax"] / column["amin"]))


def _measure_scales(context: StepContext) -> None:
    scales: dict[str, torch.Tensor] = {}
    for layer in context.model.modules():
        if isinstance(layer, CastLayer):
            used = {operand: cast.last_scale for operand, cast in layer.quantizers().items()}
            scales |= {f"{layer.cast_name}.{operand}": scale for operand, scale in used.items() if scale is not None}
    if scales:
        logs = [scale.double().log2().mean() for scale in scales.values()]
        context.measurements.add_layers("scale_log2", list(scales), torch.stack(logs))
