"""What the optimizer's step changes in the weights, as the GEMMs read them.

Per weight of a linear layer or convolution, ``q`` its values in the format that the GEMM reads (the recipe's weight format,
else the compute precision; where the two GEMMs that read it have a cast each, as fprop reads it), before and after the step
under the **same** scale, since a drifting amax would change every value:

| metric | definition | unit |
| --- | --- | --- |
| ``bit_stall_rate`` | of the elements with a non-zero gradient, those whose ``q`` is the same after the step | fraction |
| ``bit_flip_rate`` | elements whose ``q`` changed / elements | fraction |
| ``update_ulps`` | mean of abs(w after - w before) / ulp of the format at w before | ulp |

and per parameter of any kind:

| metric | definition | unit |
| --- | --- | --- |
| ``zero_update_frac`` | elements whose stored value (FP32, or ``weight_storage``) stays the same / elements | fraction |
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.sums import update_counts
from altgrad_core.recipes.linear import CastLayer
from altgrad_core.recipes.readers import gemm_layers
from altgrad_core.training.probes import Probe, StepContext


@attrs.frozen
class _Reading:
    """How a layer's GEMMs read its weight in this step."""

    layer: nn.Module
    format: Format
    scale: Tensor
    block: Block | None

    def as_cast(self, weight: Tensor) -> Tensor:
        return self.layer.as_cast(weight) if isinstance(self.layer, CastLayer) else weight


class UpdatesProbe(Probe):
    """The probe ``updates``; holds a copy of the weights between the two moments of its steps."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._weights: dict[str, Tensor] = {}
        self._readings: dict[str, _Reading] = {}

    def before_update(self, context: StepContext) -> None:
        """Copy the weights, and remember how they are read."""
        self._weights = {name: p.detach().clone() for name, p in context.parameters.items()}
        self._readings = {}
        names = {id(p): name for name, p in context.parameters.items()}
        for module in gemm_layers(context.model):
            if id(module.weight) in names and module.weight.grad is not None:
                self._readings[names[id(module.weight)]] = _reading(module, context.recipe.compute)

    def after_update(self, context: StepContext) -> None:
        """Compare; nothing leaves the device."""
        zero, layers, counts = [], [], []
        for name, parameter in context.parameters.items():
            before, reading = self._weights[name], self._readings.get(name)
            if reading is None:
                zero.append((parameter.detach() == before).sum().double() / before.numel())
                continue
            assert parameter.grad is not None  # before_update left the others out
            tensors = (reading.as_cast(tensor) for tensor in (before, parameter, parameter.grad))
            count = update_counts(*tensors, reading.format, reading.scale, reading.block)
            zero.append(count[0] / before.numel())
            layers.append(name)
            counts.append(count)
        add = context.measurements.add_layers
        add("zero_update_frac", list(self._weights), torch.stack(zero))
        if layers:
            _, wanted, stalled, same, moved = torch.stack(counts).unbind(dim=1)
            sizes = [context.parameters[name].numel() for name in layers]
            elements = torch.tensor(sizes, dtype=torch.float64, device=same.device)
            add("bit_stall_rate", layers, stalled / wanted)
            add("bit_flip_rate", layers, 1.0 - same / elements)
            add("update_ulps", layers, moved / elements)
        self._weights, self._readings = {}, {}


def _reading(module: nn.Module, compute: str) -> _Reading:
    quantizer = module.quantizers().get("weight") if isinstance(module, CastLayer) else None
    if quantizer is None:
        return _Reading(module, get_format(compute), torch.ones((), device=module.weight.device), None)
    assert quantizer.last_scale is not None, "the layer has a gradient, so its weight has been cast"
    return _Reading(module, quantizer.format, quantizer.last_scale, quantizer.last_block)
