"""Where the operands of each layer lie on the grids of their formats: counts by binade of abs(x) / scale.

Per ``layer.operand``, over all that was cast in the step (each element once, as in the statistics): elements of each binade,
those that became zero, subnormal, or were clamped, as the cast itself counts them, and, of formats of up to 8 bits, how many
of its codes were used. They travel as the event ``histograms``; ``altgrad_core.training.histograms`` says what each number
is. In a step that is not due nothing is set up and nothing computed. In one that is, an accelerator is waited for at each cast:
torch.bincount asks it how many bins there are.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from altgrad_core.numerics.histograms import LOWEST_EXPONENT, binade_histogram, code_histogram, used_numbers
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.recipes.linear import CastLayer
from altgrad_core.recipes.quantizer import Observed, Quantizer
from altgrad_core.training.histograms import COUNTED_BITS
from altgrad_core.training.probes import Probe, StepContext

_COUNTS = [FIELDS.index(name) for name in ("elements", "overflow", "underflow", "subnormal", "nan", "inf")]


class HistogramsProbe(Probe):
    """The probe ``histograms``."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._watched: dict[str, Quantizer] = {}
        self._sums: dict[str, Tensor] = {}  # counts, zeros, binades: float64, on the device
        self._used: dict[str, Tensor] = {}  # a bool for each finite number of the format

    def before_forward(self, context: StepContext) -> None:
        """Watch every operand that is cast."""
        self._sums, self._used = {}, {}
        for layer in context.model.modules():
            if isinstance(layer, CastLayer):
                for quantizer in layer.quantizers().values():
                    name = quantizer.site.key
                    self._watched[name] = quantizer
                    quantizer.watcher = functools.partial(self._count, name, quantizer)

    def after_backward(self, context: StepContext) -> None:
        """Stop watching, and hand over what was counted; nothing leaves the device."""
        if self._watched and not self._sums:
            warnings.warn(
                "The probe 'histograms' saw no cast: compiled models show none. Leave the model uncompiled, or the probe out.",
                stacklevel=2,
            )
        for name, quantizer in self._watched.items():
            quantizer.watcher = None
            if name in self._sums:
                counts, binades = self._sums[name].split([len(_COUNTS) + 1, len(self._sums[name]) - len(_COUNTS) - 1])
                used = self._used[name].sum().to(counts) if name in self._used else counts.new_tensor(-1)
                vector = torch.cat([counts, used.reshape(1), binades])
                context.measurements.add_histogram(name, quantizer.format, LOWEST_EXPONENT, vector)
        self._watched, self._sums, self._used = {}, {}, {}

    def _count(self, name: str, quantizer: Quantizer, cast: Observed) -> None:
        binades = binade_histogram(cast.x, scale=cast.scale, block=cast.block)
        zeros = cast.x.numel() - torch.count_nonzero(cast.x)
        counted = torch.cat([cast.statistics[_COUNTS].double(), zeros.reshape(1).double(), binades.double()])
        self._sums[name] = self._sums[name] + counted if name in self._sums else counted
        if quantizer.format.bits <= COUNTED_BITS:
            used = _used(quantizer, cast)
            self._used[name] = self._used[name] | used if name in self._used else used


def _used(quantizer: Quantizer, cast: Observed) -> Tensor:
    """Tell which of the format's finite numbers the cast used, in an order of the format's own."""
    format, how = quantizer.format, quantizer.operand
    if format.fits_bfloat16:
        return used_numbers(cast.q, format)
    codes = code_histogram(
        cast.x, format, scale=cast.scale, block=cast.block, rounding=how.rounding, saturation=how.saturation,
        draw=cast.draw, random_bits=how.random_bits,
    )  # fmt: skip
    return (codes > 0) & torch.tensor(format.values(), dtype=torch.float64, device=codes.device).isfinite()
