"""How far a sum of products may be from the exact one, given how many bits the hardware adds with.

**The model.** The products of two FP8 codes are exact: 4 + 4 significant bits at most. A tensor core adds ``STEP`` = 32 of
them, the K of every FP8 matrix instruction, and its accumulator in one go: all addends are shifted to the exponent of
the largest and cut off ``bits`` - 1 places below its leading bit. So each of the 32 + 1 loses less than one unit
u = 2^(1 - bits) * 2^e, where 2^e is the power of two at or below the largest addend, and so does the sum when it is put
back into the accumulator::

    error of a step  <  (STEP + 2) * 2^(1 - bits) * max(|accumulator before|, |accumulator after|, |products|)

(2^e <= the largest.) The errors of all steps add up. Without fast accumulation the accumulator is added to an FP32
number, and starts again from zero, every ``PROMOTED`` = 128 products (DeepSeek-V3, arXiv 2412.19437, 3.3.2; CUTLASS
promotes every four instructions), which costs 2^-24 of that number. To this come the roundings that any GEMM has: of the
scales (3 * 2^-24 of the sum of magnitudes), and of the result (2^-9 in bfloat16, 2^-24 in float32).

Maxima are those of the exact sums, computed along; that the accumulator itself is off by the error so far is second
order, and paid for by counting cuts as whole units where truncation of random bits loses half of one.

**The constants.** Hopper's FP8 units keep about 14 bits (DeepSeek-V3, same section); an FP32 sum has 24, in any order.
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
    per_unit: Tensor
    """The bound on what the accumulator cuts off, as a multiple of 2^(1 - bits): [R, C]."""
    others: Tensor
    """The bound on all other roundings: [R, C]."""

    def bound(self, bits: int) -> Tensor:
        """Return the bound for an accumulator with this many bits."""
        return self.per_unit * 2.0 ** (1 - bits) + self.others

    def bits_of(self, product: Tensor) -> float:
        """Return with how many bits the errors of ``product`` still fit the bound: what it shows of the accumulator.

        Infinite where other roundings explain all of it.
        """
        left = (product.double() - self.exact).abs() - self.others
        worst = float((left / self.per_unit.clamp_min(torch.finfo(torch.float64).tiny)).max())
        return 1 - math.log2(worst) if worst > 0 else math.inf


def sums(a: Tensor, b: Tensor, *, fast: bool, result: torch.dtype) -> Sums:
    """Return the exact product of ``a`` [R, K] and ``b`` [C, K], scales included, and its bounds; in float64.

    ``fast``: whether sums stay in the accumulator. ``result``: what the product is rounded to. Takes R * C * 32 numbers of
    memory: pass a sample of rows.
    """
    a, b = a.double(), b.double()
    exact = a @ b.t()
    size = a.abs() @ b.abs().t()
    running = torch.zeros_like(exact)
    promoted = torch.zeros_like(exact)
    per_unit, others = torch.zeros_like(exact), 3 * 2.0**-24 * size
    for start in range(0, a.shape[1], STEP):
        products = a[:, None, start : start + STEP] * b[None, :, start : start + STEP]
        after = running + products.sum(dim=-1)
        largest = torch.maximum(torch.maximum(running.abs(), after.abs()), products.abs().amax(dim=-1))
        per_unit += (STEP + 2) * largest
        running = after
        if not fast and (start + STEP) % PROMOTED == 0:
            promoted += running
            others += 2.0**-24 * promoted.abs()
            running = torch.zeros_like(running)
    return Sums(exact=exact, per_unit=per_unit, others=others + rounding(result) * exact.abs())


def rounding(result: torch.dtype) -> float:
    """Return half a unit of the last place, relative."""
    return torch.finfo(result).eps / 2


def bits_on(device: torch.device) -> int:
    """Return the bits that a device's FP8 units are taken to add with: Hopper's, or FP32's of the CPU's stand-in."""
    return HOPPER_BITS if device.type == "cuda" else FP32_BITS
