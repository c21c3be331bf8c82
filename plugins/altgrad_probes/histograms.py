"""Where the operands of each layer lie on the grids of their formats: counts by binade of abs(x) / scale.

Per ``layer.operand``, over all that was cast in the step (each element once, as in the statistics): elements of each binade,
those that became zero, subnormal, or were clamped, as the cast itself counts them, and, of formats of up to 8 bits, how many
of its codes were used. They travel as the event ``histograms``; ``altgrad_core.training.histograms`` says what each number
is. In a step that is not due nothing is set up and nothing computed.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from altgrad_core.numerics.histograms import LOWEST_EXPONENT, binade_histogram, code_histogram
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
        self._axes: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}  # counts, zeros, binades: float64, on the device
        self._codes: dict[str, Tensor] = {}

    def before_forward(self, context: StepContext) -> None:
        """Watch every operand that is cast."""
        self._axes, self._sums, self._codes = {}, {}, {}
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
                used = self._used(quantizer, name).to(counts)
                vector = torch.cat([counts, used.reshape(1), binades])
                context.measurements.add_histogram(name, quantizer.format, LOWEST_EXPONENT, vector)
        self._watched, self._axes, self._sums, self._codes = {}, {}, {}, {}

    def _count(self, name: str, quantizer: Quantizer, cast: Observed) -> None:
        call = quantizer.site.control.call
        if call is not None and call.again:
            return  # activation checkpointing repeats it
        # Where each GEMM has a cast of its own, the first one of the operand counts.
        if cast.axis != self._axes.setdefault(name, cast.axis):
            return
        binades = binade_histogram(cast.x, scale=cast.scale, block=cast.block)
        zeros = (cast.x == 0).sum()
        counted = torch.cat([cast.statistics[_COUNTS].double(), zeros.reshape(1).double(), binades.double()])
        self._sums[name] = self._sums[name] + counted if name in self._sums else counted
        if quantizer.format.bits <= COUNTED_BITS:
            how = quantizer.operand
            codes = code_histogram(
                cast.x, quantizer.format, scale=cast.scale, block=cast.block, rounding=how.rounding,
                saturation=how.saturation, draw=cast.draw, random_bits=how.random_bits,
            )  # fmt: skip
            self._codes[name] = self._codes[name] + codes if name in self._codes else codes

    def _used(self, quantizer: Quantizer, name: str) -> Tensor:
        """Return how many codes of finite numbers were used (0-d); -1 where they are not counted."""
        if name not in self._codes:
            return torch.tensor(-1)
        codes = self._codes[name]
        finite = torch.tensor(quantizer.format.values(), dtype=torch.float64, device=codes.device).isfinite()
        return ((codes > 0) & finite).sum()
