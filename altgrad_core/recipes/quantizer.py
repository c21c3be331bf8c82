"""Casts one operand of one layer, as an ``OperandCast`` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.blockwise import Block, expand
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.formats import BlockFormat, Format
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.scaling import Scale, ScalingPolicy
from altgrad_core.numerics.stochastic import Draw, Keys
from altgrad_core.numerics.stored import cast_stored
from altgrad_core.plugins import installed
from altgrad_core.recipes.recipe import OperandCast

if TYPE_CHECKING:
    from altgrad_core.recipes.site import Site


class Quantized(NamedTuple):
    """An operand as a GEMM reads it: operand ~ factor * values."""

    values: Tensor
    """Grid values times their scale, but for the factor; in the shape of the operand. Or codes, in 8 bits."""
    factor: Tensor | None
    """What the product has to be multiplied by, 0-d float32 from 1 to below 2; None for 1. Of codes the decode scale,
    0-d or [nr, nc]."""
    statistics: Tensor | None
    """The statistics vector, None unless asked for."""


class Observed(NamedTuple):
    """A cast as it was made, for who watches the quantizer."""

    x: Tensor
    """The operand before the cast."""
    scale: Tensor
    """Decode scale, float32, 0-d or [nr, nc]."""
    block: Block | None
    """Rows and columns that share a scale."""
    draw: Draw | None
    """Random bits of stochastic rounding."""
    q: Tensor
    """The result on the format's own grid, x ~ scale * q: in bfloat16 or the format's 8-bit dtype where these hold it."""
    statistics: Tensor
    """The statistics vector."""


class Quantizer(nn.Module):
    """Holds the operand's scaling policy, so that delayed scaling's history is in ``state_dict``.

    A scale is shared out so that the values lie where the operand itself lies, and a GEMM on them leaves no range that
    the layer without casts keeps to. Powers of two go into the values. So do all scales of rows and blocks, but for
    nvfp4's tensor scale; of that one and of other scales for a whole tensor, 2^k * m with 1 <= m < 2, the values get
    2^k and the product m.
    """

    site: Site
    """Where the operand is cast; a converted layer sets it."""

    def __init__(self, operand: OperandCast) -> None:
        super().__init__()
        self.operand = operand
        found = get_format(operand.format)
        self.format: Format = found.element if isinstance(found, BlockFormat) else found
        """What the operand's elements are cast to; of a block format the format of its elements."""
        choice = operand.scaling
        if isinstance(found, BlockFormat) and choice.kind != found.scaling_kind:
            raise AltgradError(
                f"The block format '{found.name}' has scales of its own, scaling '{found.scaling_kind}'; got scaling "
                f"'{choice.kind}'. Leave 'scaling' out, or take the format of its elements, '{found.element.name}'."
            )
        self.scaling: ScalingPolicy = installed().get("scaling", choice.kind).value(choice.options, found)
        self.fits_bfloat16 = self.format.fits_bfloat16 and self.scaling.keeps_bfloat16
        """Whether the values of ``forward`` are exactly bfloat16 values."""
        self.last_scale: Tensor | None = None
        """Decode scale of the newest cast along the last dimension, 0-d or [nr, nc], for probes: under delayed scaling
        the policy has moved on since. In compiled code of the newest one whose statistics were collected."""
        self.last_block: Block | None = None
        """Rows and columns that share each of ``last_scale``; None when it is 0-d."""
        self.watcher: Callable[[Observed], None] | None = None
        """Is shown every element that is cast, once, for as long as a probe sets it; compiled code shows none."""

    @property
    def directional(self) -> bool:
        """Whether each of the two GEMMs that read the operand needs a cast of its own."""
        return self.scaling.directional

    @property
    def draws(self) -> bool:
        """Whether ``forward`` needs a ``draw``."""
        return self.operand.rounding == "stochastic"

    @property
    def remembers(self) -> bool:
        """Whether the scale depends on what was cast before: the policy has a state."""
        return next(self.scaling.buffers(), None) is not None

    def forward(
        self,
        x: Tensor,
        *,
        dtype: torch.dtype,
        statistics: bool,
        axis: int = -1,
        draw: Draw | Keys | None = None,
        scale: Scale | None = None,
        shown: bool = True,
    ) -> Quantized:
        """Return ``x`` of any shape as grid values in ``dtype``, or as codes where that is the format's own 8-bit dtype.

        ``axis`` says which dimension of ``x``, as the matrix [rows, columns], the GEMM sums over: the last (-1) or the
        rows (0). It changes the result of directional scaling only. ``draw`` names the random bits of stochastic
        rounding. ``scale`` is what to scale by instead of what the policy says. ``shown`` says whether ``watcher`` sees it.
        """
        compiling = torch.compiler.is_compiling()
        block = self.scaling.block(x, axis)
        decode, inside, factor = self.scaling.shared_out(x, axis) if scale is None else scale
        if compiling and self.remembers:
            decode, inside, factor = self.site.settled(Scale(decode, inside, factor))
        if axis == -1 and not compiling:
            self.last_scale, self.last_block = decode, block
        elif axis == -1 and statistics:
            self.site.keep(decode, block)
        watcher = None if compiling or not shown else self.watcher
        counted = statistics or watcher is not None
        if dtype.itemsize == 1:
            factor = decode
            values, vector = cast_stored(
                x,
                self.format,
                scale=decode,
                block=block,
                rounding=self.operand.rounding,
                saturation=self.operand.saturation,
                draw=draw,
                random_bits=self.operand.random_bits,
                statistics=counted,
            )
        else:
            values, vector = cast(
                x,
                self.format,
                scale=decode,
                block=block,
                rounding=self.operand.rounding,
                saturation=self.operand.saturation,
                draw=draw,
                random_bits=self.operand.random_bits,
                dtype=dtype if watcher is None or not self.format.fits_bfloat16 else torch.bfloat16,
                multiplier=inside if watcher is None else 1.0,
                statistics=counted,
            )
        if watcher is not None:
            assert vector is not None
            assert not isinstance(draw, Keys)  # these are of compiled code
            watcher(Observed(x, decode, block, draw, values, vector))
            if dtype.itemsize > 1:  # what the cast does by itself otherwise, to the bit
                spread = expand(inside, x.shape, block) if block is not None and inside.dim() else inside
                values = (values.to(dtype) * spread).to(dtype)
        return Quantized(values, factor, vector if statistics else None)

    def extra_repr(self) -> str:
        """Show the format and the scaling in ``print(model)``."""
        return f"{self.operand.format}, scaling={self.operand.scaling.kind}"
