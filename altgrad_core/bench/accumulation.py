"""How far a sum of products may be from the exact one, given how many bits the hardware adds with.

**The model.** The products of two FP8 codes are exact: 4 + 4 significant bits at most. A tensor core adds ``STEP`` = 32 of
them, the K of every FP8 matrix instruction, and its accumulator in one go: all addends are shifted to the exponent of
the largest and cut off ``bits`` - 1 places below its leading bit. With u = 2^(1 - bits) each of the 32 + 1 loses less than
u times the largest of them, and the sum less than u times itself when it is put back into the accumulator. Let ``lost``
be what the accumulator is off before the step, and m the largest of the exact |accumulator before|, |accumulator after|
and |products|. No addend is beyond m + lost, and the sum is not beyond (1 + 33 u) (m + lost), so that for u < 1/33::

    lost after  <  lost + (STEP + 3) * u * (m + lost)

Without fast accumulation the accumulator is added to an FP32 number, and starts again from zero, every ``PROMOTED`` = 128
products (DeepSeek-V3, arXiv 2412.19437, 3.3.2; CUTLASS promotes every four instructions), which costs 2^-24 of that
number. To this come the roundings that any GEMM has: of the scales (3 * 2^-24 of the sum of magnitudes), and of the
result (2^-8 of it in bfloat16, 2^-24 in float32).

A bound is for the worst case, and typical errors are some 50 times smaller. What a device's sums look like is told
by ``bits_like``: beside the same sums of a simulated accumulator.

**The constants.** Hopper's FP8 units keep about 14 bits (DeepSeek-V3, same section). The CPU's stand-in adds in FP32, of 24
bits, in an order of its own: K products in any order are off by less than K * 2^-24 of the sum of magnitudes (to first
order), which is a hundred times the model's bound with 24 bits and tells little; sums of numbers of either sign, as
``verify-native`` draws them, have partial sums alike in any order, and are held against the model's.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

STEP, PROMOTED = 32, 128
HOPPER_BITS, FP32_BITS = 14, 24


@attrs.frozen(kw_only=True)
class Sums:
    """Exact products of matrices, and what an inexact one may be off."""

    exact: Tensor
    """a @ b^T in float64: [R, C]."""
    bound: Tensor
    """The bound on the distance from it: [R, C]."""


def sums(a: Tensor, b: Tensor, bits: int, *, fast: bool, result: torch.dtype) -> Sums:
    """Return the exact product of ``a`` [R, K] and ``b`` [C, K], scales included, and the bound; in float64.

    ``bits``: those of the accumulator, 7 to 24. ``fast``: whether sums stay in it. ``result``: what the product is rounded
    to. Takes R * C * 32 numbers of memory: pass a sample of rows.
    """
    a, b = a.double(), b.double()
    exact = a @ b.t()
    unit = 2.0 ** (1 - bits)
    running, lost, promoted = (torch.zeros_like(exact) for _ in range(3))
    bound = 3 * 2.0**-24 * (a.abs() @ b.abs().t())
    for start in range(0, a.shape[1], STEP):
        products = a[:, None, start : start + STEP] * b[None, :, start : start + STEP]
        after = running + products.sum(dim=-1)
        largest = torch.maximum(torch.maximum(running.abs(), after.abs()), products.abs().amax(dim=-1))
        lost += (STEP + 3) * unit * (largest + lost)
        running = after
        if not fast and ((start + STEP) % PROMOTED == 0 or start + STEP >= a.shape[1]):
            promoted += running
            bound += lost
            bound += 2.0**-24 * (promoted.abs() + bound)
            running, lost = torch.zeros_like(running), torch.zeros_like(lost)
    bound += lost
    return Sums(exact=exact, bound=bound + rounding(result) * (exact.abs() + bound))


def simulated(a: Tensor, b: Tensor, bits: int, *, fast: bool) -> Tensor:
    """Return a @ b^T, float64, as the model's accumulator with ``bits`` bits adds it up; arguments as for ``sums``."""
    a, b = a.double(), b.double()
    running = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    promoted = torch.zeros_like(running)
    for start in range(0, a.shape[1], STEP):
        products = a[:, None, start : start + STEP] * b[None, :, start : start + STEP]
        addends = torch.cat([products, running[..., None]], dim=-1)
        total = _cut(addends, addends.abs().amax(dim=-1, keepdim=True), bits).sum(dim=-1)
        running = _cut(total, total.abs(), bits)
        if not fast and (start + STEP) % PROMOTED == 0:
            promoted = (promoted.float() + running.float()).double()
            running = torch.zeros_like(running)
    return promoted + running


def bits_like(product: Tensor, exact: Tensor, a: Tensor, b: Tensor, *, fast: bool) -> int | None:
    """Return the bits, 8 to 24, of the simulated accumulator whose mean error is nearest to that of ``product``.

    None where the product is exact. Near 24 the roundings that every GEMM has count as the accumulator's.
    """
    found = float((product.double() - exact).square().mean().sqrt())
    if found == 0 or not math.isfinite(found):
        return None

    def distance(bits: int) -> float:
        off = float((simulated(a, b, bits, fast=fast) - exact).square().mean().sqrt())
        return abs(math.log2(off / found)) if off > 0 else math.inf

    return min(range(8, FP32_BITS + 1), key=distance)


def _cut(x: Tensor, largest: Tensor, bits: int) -> Tensor:
    unit = torch.exp2(torch.floor(torch.log2(largest.clamp_min(2.0**-500))) + 1 - bits)
    return torch.trunc(x / unit) * unit


def rounding(result: torch.dtype) -> float:
    """Return half a unit of the last place, relative."""
    return torch.finfo(result).eps / 2


def bits_on(device: torch.device) -> int:
    """Return the bits that a device's FP8 units are taken to add with: Hopper's, or FP32's of the CPU's stand-in."""
    return HOPPER_BITS if device.type == "cuda" else FP32_BITS
