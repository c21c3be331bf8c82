"""The policies with a scale for each row or block: rowwise, blockwise, mx, nvfp4.

All are current: the scales come from the tensor that is about to be cast, and there is no state. Those whose blocks lie
along the dimension that a GEMM sums over are directional: an operand is cast once for each GEMM that reads it.
"""

from __future__ import annotations

from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.blocks import E4M3, check_mx, check_two_levels, mx_scale, nvfp4_scales
from altgrad_core.numerics.blockwise import Block, matrix_shape
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format
from altgrad_core.numerics.modes import MXMode
from altgrad_core.numerics.scaling import Scale, ScalingPolicy, scale_for, split


class RowwiseScaling(ScalingPolicy):
    """A scale for each row of the operand as a GEMM reads it: all that is summed up for one element of the product.

    For the input of fprop that is one for each token, for the input of wgrad one for each feature.
    """

    directional = True

    def __init__(self, format: Format, *, power_of_two: bool, margin: int) -> None:
        super().__init__()
        self.format, self.power_of_two, self.margin = format, power_of_two, margin

    def block(self, x: Tensor, axis: int = -1) -> Block:
        """Return (1, columns) or (rows, 1)."""
        rows, columns = matrix_shape(x.shape)
        return (1, max(columns, 1)) if axis == -1 else (max(rows, 1), 1)

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the scales of ``x``, [nr, nc]."""
        amax = block_amax(x, self.block(x, axis))
        return scale_for(amax, self.format, power_of_two=self.power_of_two, margin=self.margin)


class BlockwiseScaling(RowwiseScaling):
    """A scale for each block of ``rows`` x ``columns``, ``columns`` of them along the dimension that is summed over.

    DeepSeek-V3 (arXiv 2412.19437) takes 1 x 128 for activations and gradients, 128 x 128 for weights. Square blocks
    serve both GEMMs that read an operand, so that it is cast once.
    """

    def __init__(self, format: Format, *, rows: int, columns: int, power_of_two: bool, margin: int) -> None:
        super().__init__(format, power_of_two=power_of_two, margin=margin)
        self.rows, self.columns = rows, columns
        self.directional = rows != columns

    def block(self, x: Tensor, axis: int = -1) -> Block:
        """Return the block, turned where the GEMM sums over the rows."""
        return (self.rows, self.columns) if axis == -1 else (self.columns, self.rows)


class MXScaling(ScalingPolicy):
    """OCP MX: a power of two for each 32 elements along the dimension that is summed over."""

    directional = True

    def __init__(self, format: Format, *, mode: MXMode, size: int | None) -> None:
        super().__init__()
        if isinstance(format, BlockFormat):
            check_mx(format)
        self.element, self.size = _element_and_size(format, size, 32)
        self.mode = mode

    def block(self, x: Tensor, axis: int = -1) -> Block:
        """Return (1, 32) or (32, 1)."""
        return (1, self.size) if axis == -1 else (self.size, 1)

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the scales of ``x``, [nr, nc]."""
        return mx_scale(block_amax(x, self.block(x, axis)), self.element, self.mode)


class NVFP4Scaling(ScalingPolicy):
    """NVFP4: an e4m3fn scale for each 16 elements along the dimension that is summed over, and one for the tensor.

    The values that enter a GEMM carry the block scales and the power of two of the tensor's: element times block scale
    has 2 + 4 significant bits, of BF16's 8. The mantissa of the tensor scale is left to the product.
    """

    power_of_two = False
    directional = True

    def __init__(self, format: Format, *, power_of_two: bool, size: int | None) -> None:
        super().__init__()
        self.element, self.size = _element_and_size(format, size, 16)
        self.scale_format: Format = format.scale_format if isinstance(format, BlockFormat) else E4M3
        check_two_levels(self.scale_format)
        self.power_of_two_tensor = power_of_two

    @property
    def keeps_bfloat16(self) -> bool:
        """Whether element times block scale has at most BF16's 8 significant bits."""
        both = (self.element, self.scale_format)
        return sum(f.mantissa_bits + 1 if isinstance(f, FloatFormat) else 8 for f in both) <= 8

    def block(self, x: Tensor, axis: int = -1) -> Block:
        """Return (1, 16) or (16, 1)."""
        return (1, self.size) if axis == -1 else (self.size, 1)

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return block scales times tensor scale, [nr, nc]."""
        return self.shared_out(x, axis).decode

    def shared_out(self, x: Tensor, axis: int = -1) -> Scale:
        """Return the scales, and the mantissa of the tensor scale apart."""
        scale, tensor_scale = nvfp4_scales(
            block_amax(x, self.block(x, axis)),
            tensor_amax(x),
            element=self.element,
            scale_format=self.scale_format,
            power_of_two=self.power_of_two_tensor,
        )
        if self.power_of_two_tensor:
            return Scale(scale * tensor_scale, scale * tensor_scale, None)
        power, factor = split(tensor_scale)
        return Scale(scale * tensor_scale, scale * power, factor)


def _element_and_size(format: Format, size: int | None, usual: int) -> tuple[Format, int]:
    """Return the format of the elements and how many share a scale."""
    if not isinstance(format, BlockFormat):
        return format, usual if size is None else size
    if size not in (None, format.block):
        raise AltgradError(
            f"A block of '{format.name}' has {format.block} elements, got scaling with block = {size}; leave 'block' "
            f"out, or take the format '{format.element.name}' with a block of your own."
        )
    return format.element, format.block
