"""Layers whose output is cast: embeddings as a weight, norms as an input. The gradient passes the cast as it is."""

from __future__ import annotations

from torch import Tensor

from altgrad_core.recipes.linear import CastLayer
from altgrad_core.recipes.values import cast_value


class CastEmbedding(CastLayer):
    """An ``nn.Embedding`` that looks up cast values: ``weight`` is the rows that the tokens at hand select.

    The scale is that of these rows, not of the whole table. The weight's gradient is a sum of rows, no product, and not cast.
    """

    operands = {"weight": "weight"}  # noqa: RUF012

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape [...] -> [..., D]."""
        rows = super().forward(input)
        if not self.cast_control.casting:
            return rows
        with self.calling(input):
            return cast_value(self, "weight", rows)


class CastNorm(CastLayer):
    """A norm whose output is cast, as what a low-precision activation between it and the next layers would hold."""

    operands = {"output": "input"}  # noqa: RUF012

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """What the norm takes -> its output, cast."""
        output = super().forward(*args, **kwargs)
        if not self.cast_control.casting:
            return output
        with self.calling(output):
            return cast_value(self, "output", output)
