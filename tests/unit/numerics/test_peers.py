"""The same numbers as ml_dtypes, gfloat and torch's own casts.

ml_dtypes and torch do not saturate as we do by default (NaN or Inf beyond the end, and ml_dtypes makes -0 of NaN in fp6
and fp4), so inputs are clamped first and NaN is set aside.
"""

from __future__ import annotations

import math

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.codes import decode, encode
from altgrad_core.testing.formats import assert_same
from altgrad_core.testing.strategies import landmarks

PEERS = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}
TORCH = ["e5m2", "e4m3fn", "e4m3fnuz", "e5m2fnuz", "bf16", "fp16"]


def inputs(format: FloatFormat) -> Tensor:
    """Every bfloat16, every landmark, and random float32 patterns over all exponents and around the format's range."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).to(torch.int32).view(torch.float32)
    around = torch.randn(100_000, generator=generator) * min(format.max_finite, 1e30) / 4
    return torch.cat([every, landmarks(format), patterns, around, around * 1e-4])


def float_format(name: str) -> FloatFormat:
    found = get_format(name)
    assert isinstance(found, FloatFormat)
    return found


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("name", PEERS)
def test_values_of_ml_dtypes(name: str) -> None:
    f = float_format(name)
    x = inputs(f)
    theirs = x.clamp(-f.max_finite, f.max_finite).numpy().astype(PEERS[name]).astype(np.float32)
    expected = torch.where(torch.isnan(x), math.nan, torch.from_numpy(theirs))
    assert_same(quantize(x, f), expected, x)


@pytest.mark.parametrize("name", [name for name in PEERS if float_format(name).has_nan])
def test_overflow_of_ml_dtypes_is_saturation_none(name: str) -> None:
    f = float_format(name)
    x = inputs(f)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = x.numpy().astype(PEERS[name]).astype(np.float32)
    assert_same(quantize(x, f, saturation="none"), torch.from_numpy(theirs), x)


@pytest.mark.parametrize("name", [name for name in PEERS if float_format(name).bits <= 8])
def test_codes_of_ml_dtypes(name: str) -> None:
    f = float_format(name)
    codes = np.arange(2**f.bits, dtype=np.uint8)
    theirs = torch.from_numpy(codes.view(PEERS[name]).astype(np.float32))
    assert_same(decode(torch.from_numpy(codes), f), theirs, torch.from_numpy(codes))
    x = inputs(f)
    x = x[torch.isfinite(x)].clamp(-f.max_finite, f.max_finite)
    assert encode(x, f).tolist() == x.numpy().astype(PEERS[name]).view(np.uint8).tolist()


@pytest.mark.parametrize("name", TORCH)
def test_values_of_torch(name: str) -> None:
    f = float_format(name)
    assert f.torch_dtype is not None
    x = inputs(f)
    theirs = x.clamp(-f.max_finite, f.max_finite).to(getattr(torch, f.torch_dtype)).float()
    assert_same(quantize(x, f), theirs, x)


@pytest.mark.parametrize("name", ["e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f", "e3m4", "e6m5"])
def test_values_of_gfloat(name: str) -> None:
    """gfloat has any format; it rounds arrays by frexp in float64."""
    f = float_format(name)
    theirs = gfloat.FormatInfo(
        name=name,
        k=f.bits,
        precision=f.mantissa_bits + 1,
        bias=f.bias,
        has_nz=True,
        domain=gfloat.Domain.Extended if f.has_inf else gfloat.Domain.Finite,
        num_high_nans=2**f.mantissa_bits - 1 if f.has_inf else 0,
        has_subnormals=True,
        is_signed=True,
        is_twos_complement=False,
    )
    x = torch.cat([landmarks(f), inputs(f)[-20_000:]])
    x = x[torch.isfinite(x)].clamp(-f.max_finite, f.max_finite)
    rounded = gfloat.round_ndarray(theirs, x.double().numpy(), gfloat.RoundMode.TiesToEven)
    assert_same(quantize(x, f), torch.from_numpy(np.asarray(rounded)), x)
