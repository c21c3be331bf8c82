"""``scaled_mm``: a product of FP8 codes on the device's FP8 units, and whether the device has it, found by trying.

``torch._scaled_mm`` and ``torch.nn.functional.scaled_mm`` take decode scales, a row-major left and a column-major right
operand. What CUDA refuses is refused here on every device: the CPU, which is the stand-in in tests, takes more than
CUDA does (any size and layout, e5m2 x e5m2), so that its consent proves nothing.

Sizes are padded with zeros, which add nothing, to what the units want: the dimension that is summed over and the columns
of the product to 16, with blocks of 128 all of it.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError

Granularity = Literal["tensorwise", "rowwise", "1x128", "128x128"]
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
ALIGNED, BLOCK = 16, 128
BLOCKS: tuple[Granularity, ...] = ("1x128", "128x128")


def pair_problem(a: Granularity, b: Granularity, a_dtype: torch.dtype, b_dtype: torch.dtype) -> str:
    """Return why no FP8 GEMM takes two operands like these, an empty string when one may."""
    for dtype in (a_dtype, b_dtype):
        if dtype not in FP8:
            return f"no FP8 GEMM takes {str(dtype).removeprefix('torch.')}"
    if a_dtype == b_dtype == torch.float8_e5m2:
        return "no FP8 GEMM takes e5m2 x e5m2"
    if (a in BLOCKS) != (b in BLOCKS) or a == b == "128x128":
        return f"no FP8 GEMM takes scales {a} with {b}"
    return ""


def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_kind: Granularity,
    b_kind: Granularity,
    *,
    out: torch.dtype,
    bias: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """Return (a_scale * a) @ (b_scale * b)^T + bias in ``out``, bfloat16 or float32: a [M, K], b [N, K] -> [M, N].

    Args:
        a: codes, float8_e4m3fn or float8_e5m2, rows in memory one after the other.
        b: likewise; as the transposed right operand it is column-major, as the units want it. Not both e5m2.
        a_scale: decode scales, float32: 0-d (``tensorwise``), [M, 1] (``rowwise``), [M, K/128], or [M/128, K/128],
            fractions rounded up.
        b_scale: likewise with N for M.
        a_kind: what shares a scale in ``a``.
        b_kind: likewise; a tensorwise operand goes with a rowwise one, blocks with blocks, 128x128 with 1x128.
        bias: [N], added before the product is rounded to bfloat16; to a float32 product afterwards.
        fast: whether sums may stay in the units' own registers (``use_fast_accum``).

    Raises ``AltgradError`` for operands that CUDA would refuse, whatever the device.
    """
    _check(a, b, a_scale, b_scale, a_kind, b_kind, out)
    rows, columns = a.shape[0], b.shape[0]
    if not rows * columns * a.shape[1]:
        product = torch.zeros(rows, columns, dtype=out, device=a.device)
        return product if bias is None else product + bias.to(out)
    blocks = a_kind in BLOCKS
    a = padded(a, ALIGNED if blocks else 1, BLOCK if blocks else ALIGNED)
    b = padded(b, ALIGNED, BLOCK if blocks else ALIGNED)
    inside = bias if bias is not None and out is torch.bfloat16 and not blocks else None
    if inside is not None:
        inside = torch.nn.functional.pad(inside.to(out), (0, b.shape[0] - columns))
    if blocks:
        product = _blockwise(a, b, a_scale, b_scale, a_kind, b_kind, out)
    else:
        if a_kind != b_kind or a_kind == "rowwise":
            a_scale = _of_rows(a_scale, a.shape[0])[:, None]
            b_scale = _of_rows(b_scale, b.shape[0])[None, :]
        product = torch._scaled_mm(
            a, b.t(), scale_a=a_scale, scale_b=b_scale, bias=inside, out_dtype=out, use_fast_accum=fast
        )
    product = product[:rows, :columns]
    return product if bias is None or inside is not None else product + bias.to(out)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` with its elements in memory one row after the other.

    In compiled code always as a copy, which the compiler merges with what makes it: PyTorch 2.13 traces a backward pass
    that asks whether a gradient is contiguous twice, and leaves autocast as it was in the middle of the first attempt.
    """
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x.contiguous()


def padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return codes [R, C] with zeros added until R and C are multiples, contiguous; the tensor itself if they are."""
    down, across = -x.shape[0] % rows, -x.shape[1] % columns
    if down or across:  # by bytes: the code of 0 is 0 in both formats
        x = torch.nn.functional.pad(x.view(torch.uint8), (0, across, 0, down)).view(x.dtype)
    return x


@functools.lru_cache(maxsize=256)
def trial(
    device: torch.device,
    a_kind: Granularity,
    b_kind: Granularity,
    a_dtype: torch.dtype,
    b_dtype: torch.dtype,
    out: torch.dtype,
    fast: bool,
) -> str:
    """Multiply two small matrices on ``device`` and return what is wrong, an empty string when the numbers are right.

    Versions and device names say little about which kernels a build holds; a wrong layout of scales gives numbers that
    are far off. The answer is kept for the life of the process.
    """
    if problem := pair_problem(a_kind, b_kind, a_dtype, b_dtype):
        return problem
    draws = torch.Generator(device="cpu").manual_seed(0)  # on the CPU, whatever the caller's default device is
    m, k, n = 144, 3 * BLOCK, 272
    sides = []
    for rows, kind, dtype in ((m, a_kind, a_dtype), (n, b_kind, b_dtype)):
        codes = torch.randn(rows, k, generator=draws, device="cpu").to(dtype)
        shape = {"tensorwise": (), "rowwise": (rows, 1), "1x128": (rows, 3), "128x128": (-(-rows // BLOCK), 3)}[kind]
        scales = torch.exp2(torch.randint(-4, 5, shape, generator=draws, device="cpu").float())
        sides.append((codes, scales))
    (a, a_scale), (b, b_scale) = sides
    wide = [decoded(codes, scale, kind) for (codes, scale), kind in zip(sides, (a_kind, b_kind), strict=True)]
    bias = torch.randn(n, generator=draws, device="cpu")
    expected, size = wide[0] @ wide[1].t() + bias, wide[0].abs() @ wide[1].abs().t() + bias.abs()
    try:
        a, b, a_scale, b_scale, bias = (x.to(device) for x in (a, b, a_scale, b_scale, bias))
        got = scaled_mm(a, b, a_scale, b_scale, a_kind, b_kind, out=out, bias=bias, fast=fast)
        # 14 bits and BF16 are well within this; a scale in the wrong place is not.
        wrong = (got.cpu().double() - expected).abs() > size * 2.0**-7
    except Exception as error:  # whatever a build or a driver answers
        return f"{device.type} refuses it: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return f"{device.type} gives wrong numbers for it" if bool(wrong.any()) else ""


def decoded(codes: Tensor, scale: Tensor, kind: Granularity) -> Tensor:
    """Return scale * code in float64: [R, C]."""
    if kind in BLOCKS:
        scale = scale.repeat_interleave(BLOCK, dim=1)[:, : codes.shape[1]]
        if kind == "128x128":
            scale = scale.repeat_interleave(BLOCK, dim=0)[: codes.shape[0]]
    return codes.double() * scale.double()


def _of_rows(scale: Tensor, rows: int) -> Tensor:
    """Return [rows] of one scale, or of a scale for each row but the padding, whose scale is 1."""
    if scale.dim() == 0:
        return dense(scale.expand(rows))
    return torch.nn.functional.pad(scale.reshape(-1), (0, rows - scale.shape[0]), value=1.0)


def _blockwise(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_kind: Granularity, b_kind: Granularity, out: torch.dtype
) -> Tensor:
    """Scales as cuBLAS lays them out: 1x128 by columns; 128x128 by rows of a multiple of four, turned."""
    from torch.nn.functional import ScalingType

    def laid_out(scale: Tensor, kind: Granularity, rows: int) -> Tensor:
        if kind == "1x128":
            scale = torch.nn.functional.pad(scale, (0, 0, 0, rows - scale.shape[0]), value=1.0)
            return dense(scale.t()).t()
        return torch.nn.functional.pad(scale, (0, -scale.shape[1] % 4)).t()

    recipes = {"1x128": ScalingType.BlockWise1x128, "128x128": ScalingType.BlockWise128x128}
    result: Tensor = torch.nn.functional.scaled_mm(
        a,
        b.t(),
        laid_out(a_scale, a_kind, a.shape[0]),
        recipes[a_kind],
        laid_out(b_scale, b_kind, b.shape[0]),
        recipes[b_kind],
        output_dtype=out,
    )
    return result


def _check(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_kind: Granularity, b_kind: Granularity, out: torch.dtype
) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise AltgradError(
            f"scaled_mm takes a [M, K] and b [N, K], got shapes {list(a.shape)} and {list(b.shape)}; make matrices of them."
        )
    if problem := pair_problem(a_kind, b_kind, a.dtype, b.dtype):
        raise AltgradError(f"scaled_mm: {problem}; multiply the values in BF16 instead.")
    if out not in (torch.bfloat16, torch.float32):
        raise AltgradError(f"scaled_mm gives bfloat16 or float32, got out={out}.")
    for name, x, scale, kind in (("a", a, a_scale, a_kind), ("b", b, b_scale, b_kind)):
        if not torch.compiler.is_compiling() and not x.is_contiguous():
            raise AltgradError(
                f"The FP8 units want the rows of {name} one after the other in memory, got strides {x.stride()} for shape "
                f"{list(x.shape)}; pass {name}.contiguous()."
            )
        blocks = -(-x.shape[1] // BLOCK)
        wanted = {
            "tensorwise": (),
            "rowwise": (x.shape[0], 1),
            "1x128": (x.shape[0], blocks),
            "128x128": (-(-x.shape[0] // BLOCK), blocks),
        }[kind]
        if tuple(scale.shape) != wanted or scale.dtype is not torch.float32:
            raise AltgradError(
                f"The {kind} scales of {name} are float32 of shape {list(wanted)}, got {scale.dtype} of shape "
                f"{list(scale.shape)}."
            )
