"""The linear layer of Hugging Face's GPT-2, ``transformers.pytorch_utils.Conv1D``: its weight lies transposed, [I, O].

It is known by its name, so that nothing here imports transformers, and converted as a linear layer is: the casts and GEMMs
are those of ``linear`` on the transposed weight.
"""

from __future__ import annotations

from torch import Tensor, nn

from altgrad_core.recipes.linear import CastGemmLayer, cast_product


def is_transposed_linear(kind: type[nn.Module]) -> bool:
    """Tell whether this is that class."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class CastTransposedLinear(CastGemmLayer):
    """A ``Conv1D`` whose GEMM operands are cast."""

    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if not self.cast_control.casting:
            return super().forward(x)  # type: ignore[no-any-return]
        return cast_product(self, x, self.weight.t(), self.bias)

    def as_cast(self, weight: Tensor) -> Tensor:
        """[I, O] -> [O, I]."""
        return weight.t()
