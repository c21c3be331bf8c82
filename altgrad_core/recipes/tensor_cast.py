"""The cast of a tensor to where it was: ``scale * q`` in its own dtype. For what is stored rather than multiplied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.cast import cast
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OperandCast


class TensorCast(nn.Module):
    """Casts one tensor again and again; holds its scaling policy, so that its state is in ``state_dict``.

    Blocks lie along the tensor's last dimension: the one that fprop sums over, for a weight and what has its shape.
    """

    def __init__(self, how: OperandCast) -> None:
        super().__init__()
        quantizer = Quantizer(how)
        self.how, self.element, self.scaling = how, quantizer.format, quantizer.scaling

    def forward(self, x: Tensor, control: CastControl, key: str) -> Tensor:
        """Return ``scale * q`` in the shape and dtype of ``x``, and record statistics under ``key`` when collecting.

        A dtype that cannot hold ``scale * q`` rounds it: a bfloat16 tensor is no place for fp16.
        """
        scale, block = self._scale(x)
        return self._cast(x, control, key, scale, block, multiplier=scale).to(x.dtype)

    def grid_values(self, x: Tensor, control: CastControl, key: str) -> tuple[Tensor, Tensor, Block | None]:
        """Return ``q`` (float32, or float64 for such ``x``), its decode scale, and the block that shares one."""
        scale, block = self._scale(x)
        return self._cast(x, control, key, scale, block, multiplier=1.0), scale, block

    def _scale(self, x: Tensor) -> tuple[Tensor, Block | None]:
        return self.scaling.shared_out(x).decode, self.scaling.block(x)

    def _cast(
        self, x: Tensor, control: CastControl, key: str, scale: Tensor, block: Block | None, multiplier: float | Tensor
    ) -> Tensor:
        values, statistics = cast(
            x,
            self.element,
            scale=scale,
            block=block,
            rounding=self.how.rounding,
            saturation=self.how.saturation,
            draw=control.draw(key) if self.how.rounding == "stochastic" else None,
            random_bits=self.how.random_bits,
            dtype=torch.promote_types(x.dtype, torch.float32),
            multiplier=multiplier,
            statistics=control.collecting,
        )
        if statistics is not None:
            control.record(key, statistics)
        return values

    def extra_repr(self) -> str:
        """Show the format and the scaling in ``print``."""
        return f"{self.how.format}, scaling={self.how.scaling.kind}, rounding={self.how.rounding}"
