"""The bound on sums, against accumulators that are simulated addend by addend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from altgrad_core.bench.accumulation import FP32_BITS, HOPPER_BITS, bits_like, bits_on, simulated, sums


def operands(k: int, kind: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(k)
    a, b = (torch.randn(12, k) for _ in range(2))
    if kind == "positive":  # nothing cancels
        a, b = a.abs(), b.abs()
    if kind == "spread":  # large addends beside small ones
        a = a * torch.exp2(torch.randint(-6, 7, (12, k)).float())
    return a.to(torch.float8_e4m3fn).double(), b.to(torch.float8_e5m2).double()


@pytest.mark.parametrize("kind", ["signed", "positive", "spread"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_simulated_accumulator_stays_within_its_bound_and_is_told_by_its_errors(fast: bool, kind: str) -> None:
    for k in (16, 129, 1024):
        a, b = operands(k, kind)
        narrow = sums(a, b, FP32_BITS, fast=fast, result=torch.float32).bound
        for bits in (12, 14) if k == 1024 else (24,):
            found = sums(a, b, bits, fast=fast, result=torch.float32)
            assert torch.equal(found.exact, a @ b.t())
            product = simulated(a, b, bits, fast=fast)
            error = (product - found.exact).abs()
            assert bool((error <= found.bound).all())
            if k == 1024:
                assert bits_like(product, found.exact, a, b, fast=fast) == bits
            if bits < 16 and k > 16:
                assert bool((error > narrow).any())


def test_an_accumulator_cuts_off_what_is_below_its_last_place() -> None:
    one = torch.ones(1, 33)
    small = torch.cat([torch.tensor([1.0]), torch.full((32,), 2.0**-14)])[None]  # a step, and one product more
    assert simulated(small, one, 14, fast=True).item() == 1.0
    assert simulated(small, one, 15, fast=True).item() == 1.0 + 31 * 2.0**-14 + 2.0**-14
    # Each of the 32 loses less than a unit.
    assert sums(small, one, 14, fast=True, result=torch.float32).bound.item() > 32 * 2.0**-14


def test_a_sum_in_fp32_fits_24_bits_and_a_wrong_one_does_not_fit_14() -> None:
    a, b = operands(1024, "signed")
    product = a.float() @ b.float().t()
    found = sums(a, b, FP32_BITS, fast=True, result=torch.float32)
    assert bool(((product.double() - found.exact).abs() <= found.bound).all())
    assert (bits_like(product, found.exact, a, b, fast=True) or 24) >= 20
    bound = sums(a, b, HOPPER_BITS, fast=True, result=torch.float32).bound
    for wrong in (product * 1.5, product.roll(1, 0), torch.zeros_like(product)):
        assert bool(((wrong.double() - found.exact).abs() > bound).any())
        assert bits_like(wrong, found.exact, a, b, fast=True) <= 10


def test_a_result_in_bf16_may_be_half_a_unit_further_off() -> None:
    a, b = operands(64, "signed")
    found = sums(a, b, FP32_BITS, fast=True, result=torch.bfloat16)
    assert bool(((found.exact.bfloat16().double() - found.exact).abs() <= found.bound).all())
    half = found.bound - sums(a, b, FP32_BITS, fast=True, result=torch.float32).bound
    torch.testing.assert_close(half, found.exact.abs() * (2.0**-8 - 2.0**-24), rtol=1e-3, atol=1e-5)
    assert bits_like(found.exact, found.exact, a, b, fast=True) is None


def test_the_cpu_adds_in_fp32() -> None:
    assert bits_on(torch.device("cpu")) == 24
    assert bits_on(torch.device("cuda")) == 14
