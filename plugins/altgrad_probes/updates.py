"""What the optimizer's step changes in the weights, as the GEMMs read them.

Per weight of a linear layer, ``q`` its values in the format that the GEMM reads (the recipe's weight format, else the compute
precision; where the two GEMMs that read it have a cast each, as fprop reads it), before and after the step under the
**same** scale, since a drifting amax would change every value:

| metric | definition | unit |
| --- | --- | --- |
| ``bit_stall_rate`` | of the elements with a non-zero gradient, those whose ``q`` is the same after the step | fraction |
| ``bit_flip_rate`` | elements whose ``q`` changed / elements | fraction |
| ``update_ulps`` | mean of abs(w after - w before) / ulp of the format at w before | ulp |

and per parameter of any kind:

| metric | definition | unit |
| --- | --- | --- |
| ``zero_update_frac`` | elements whose FP32 master value is the same after the step / elements | fraction |
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.numerics.blockwise import Block, expand
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.codes import ulp
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.registry import get_format
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.training.probes import Probe, StepContext


@attrs.frozen
class _Reading:
    """How a layer's GEMMs read its weight in this step."""

    format: Format
    scale: Tensor
    block: Block | None

    def values(self, weight: Tensor) -> Tensor:
        """Return the grid values of the weight."""
        dtype = torch.bfloat16 if self.format.fits_bfloat16 else torch.float32
        return cast(weight, self.format, scale=self.scale, block=self.block, dtype=dtype)[0]

    def ulp(self, weight: Tensor) -> Tensor:
        """Return the distance between neighbouring values around each weight."""
        if self.block is None:
            return ulp(weight, self.format, scale=self.scale)
        scale = expand(self.scale, weight.shape, self.block)
        return ulp(weight / scale, self.format) * scale


@attrs.frozen
class _Before:
    """A linear layer's weight before the update."""

    reading: _Reading
    q: Tensor


class UpdatesProbe(Probe):
    """The probe ``updates``; holds a copy of the weights between the two moments of its steps."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._weights: dict[str, Tensor] = {}
        self._before: dict[str, _Before] = {}

    def before_update(self, context: StepContext) -> None:
        """Copy the weights and cast them."""
        self._weights = {name: p.detach().clone() for name, p in context.parameters.items()}
        self._before = {}
        names = {id(p): name for name, p in context.parameters.items()}
        for module in context.model.modules():
            if isinstance(module, nn.Linear) and id(module.weight) in names and module.weight.grad is not None:
                name = names[id(module.weight)]
                reading = _reading(module, context.recipe.compute)
                self._before[name] = _Before(reading, reading.values(self._weights[name]))

    def after_update(self, context: StepContext) -> None:
        """Compare; nothing leaves the device."""
        zero, stall, flip, moved = [], [], [], []
        for name, parameter in context.parameters.items():
            weight, old = parameter.detach(), self._weights[name]
            zero.append((weight == old).double().mean())
            before = self._before.get(name)
            if before is None:
                continue
            same = before.reading.values(weight) == before.q
            assert parameter.grad is not None  # before_update left the others out
            wanted = parameter.grad != 0
            stall.append((same & wanted).sum().double() / wanted.sum())
            flip.append(1.0 - same.double().mean())
            moved.append(((weight - old).abs() / before.reading.ulp(old)).mean())
        add = context.measurements.add_layers
        add("zero_update_frac", list(self._weights), torch.stack(zero))
        if self._before:
            layers = [name for name in self._weights if name in self._before]
            add("bit_stall_rate", layers, torch.stack(stall))
            add("bit_flip_rate", layers, torch.stack(flip))
            add("update_ulps", layers, torch.stack(moved))
        self._weights, self._before = {}, {}


def _reading(module: nn.Linear, compute: str) -> _Reading:
    quantizer = module.weight_cast if isinstance(module, CastLinear) else None
    if quantizer is None:
        return _Reading(get_format(compute), torch.ones((), device=module.weight.device), None)
    assert quantizer.last_scale is not None, "the layer has a gradient, so its weight has been cast"
    return _Reading(quantizer.format, quantizer.last_scale, quantizer.last_block)
