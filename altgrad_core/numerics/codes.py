"""Codes of a ``FloatFormat``: ``encode``, ``decode``, their order, and the distance between neighbouring values.

For storage, for counting what moved by how many steps, and for tests; a cast itself never makes codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.cast import inverse_scale, quantize
from altgrad_core.numerics.formats import FloatFormat
from altgrad_core.numerics.modes import Saturation
from altgrad_core.numerics.registry import get_format

NAN_ORDINAL = -(2**63)
"""What ``ordinal`` returns for NaN, which has no place in the order."""

_MANTISSA_64 = 52
_BIAS_64 = 1023


def encode(
    x: Tensor,
    format: str | FloatFormat,
    *,
    scale: float | Tensor = 1.0,
    saturation: Saturation = "finite",
    nan_code: int | None = None,
) -> Tensor:
    """Return the codes (int64, shape of ``x``) of the values nearest to x / scale, ties to the even code.

    NaN gets ``nan_code``, by default ``format.nan_code``. For a format without a NaN code ``nan_code`` must be given
    where ``x`` may hold NaN: otherwise the tensor is searched (which waits for an accelerator) and a NaN raises
    ``AltgradError``.
    """
    fmt = _float_format(format)
    if nan_code is None:
        nan_code = fmt.nan_code
        if nan_code is None:
            if bool(torch.isnan(x).any()):
                raise AltgradError(
                    f"'{fmt.name}' has no code for NaN and the tensor holds NaN; say which code it gets: nan_code=..."
                )
            nan_code = 0
    elif not 0 <= nan_code < 2**fmt.bits:
        raise AltgradError(f"nan_code for '{fmt.name}' is 0 to {2**fmt.bits - 1}, got {nan_code}.")
    # Dividing in float32 first gives the values that quantize() gives.
    wide = x.detach() if x.dtype is torch.float64 else x.detach().float()
    q = quantize(wide * inverse_scale(scale), fmt, saturation=saturation).double()
    size = q.abs()
    # A normal's code is the top of its float64 bits with the other bias; below, the value counts units.
    shift = (fmt.min_exponent - 1 + _BIAS_64) << fmt.mantissa_bits
    normal = (size.view(torch.int64) >> (_MANTISSA_64 - fmt.mantissa_bits)) - shift
    units = torch.where(torch.isfinite(size), size, 0.0) * 2.0 ** (fmt.mantissa_bits - fmt.min_exponent)
    code = torch.where(size < 2.0**fmt.min_exponent, units.to(torch.int64), normal)
    if fmt.inf_code is not None:
        code = torch.where(torch.isinf(q), fmt.inf_code, code)
    code = torch.where(torch.signbit(q), code | fmt.sign_bit, code)
    return torch.where(torch.isnan(q), nan_code, code)


def decode(codes: Tensor, format: str | FloatFormat, *, scale: float | Tensor = 1.0) -> Tensor:
    """Return scale * value of each code, float32, shape of ``codes`` (any integer dtype; higher bits are not read)."""
    fmt = _float_format(format)
    codes = codes.to(torch.int64)
    magnitude = codes & (2 ** (fmt.exponent_bits + fmt.mantissa_bits) - 1)
    field, mantissa = magnitude >> fmt.mantissa_bits, magnitude & (2**fmt.mantissa_bits - 1)
    mantissa = torch.where(field > 0, mantissa + 2**fmt.mantissa_bits, mantissa)
    exponent = field.clamp(min=1) - fmt.bias - fmt.mantissa_bits
    power = ((exponent + _BIAS_64) << _MANTISSA_64).view(torch.float64)
    value = mantissa.double() * power
    if fmt.specials != "none":
        value = torch.where(magnitude > fmt.max_code, math.nan, value)
    if fmt.inf_code is not None:
        value = torch.where(magnitude == fmt.inf_code, math.inf, value)
    negative = (codes & fmt.sign_bit) != 0
    value = torch.where(negative, -value, value)
    if fmt.specials == "fnuz":
        value = torch.where(negative & (magnitude == 0), math.nan, value)
    factor = scale.detach().float() if isinstance(scale, Tensor) else torch.tensor(scale, device=codes.device)
    return value.float() * factor.to(torch.float32)


def ordinal(codes: Tensor, format: str | FloatFormat) -> Tensor:
    """Return the place of each code in the order of values, int64: 0 for zero, +-1 for its neighbours, and so on.

    Both zeros have place 0, Inf comes one after the largest finite value, NaN is ``NAN_ORDINAL``.
    """
    fmt = _float_format(format)
    codes = codes.to(torch.int64) & (2**fmt.bits - 1)
    magnitude = codes & ~fmt.sign_bit
    negative = (codes & fmt.sign_bit) != 0
    last = fmt.max_code if fmt.inf_code is None else fmt.inf_code
    nan = magnitude > last
    if fmt.specials == "fnuz":
        nan = nan | (codes == fmt.sign_bit)
    return torch.where(nan, NAN_ORDINAL, torch.where(negative, -magnitude, magnitude))


def ulp(x: Tensor, format: str | FloatFormat, *, scale: float | Tensor = 1.0) -> Tensor:
    """Return the distance between neighbouring values of the format around ``x``, in units of x; float32, shape of
    ``x``.

    Around a power of two it is the distance upwards. Below the smallest normal it is that of the subnormals, beyond the
    largest finite value that of the largest. NaN for NaN.
    """
    fmt = _float_format(format)
    inverse = inverse_scale(scale)
    least = 2.0**fmt.min_exponent
    size = (x.detach().double() * inverse).abs().clamp(least, max(least, 2.0**fmt.max_exponent))
    # float64 bits: the exponent alone; a NaN keeps its exponent, which is that of Inf.
    power = (size.view(torch.int64) & (0x7FF << _MANTISSA_64)).view(torch.float64)
    spacing = (power * 2.0**-fmt.mantissa_bits).float()
    factor = scale.detach().float() if isinstance(scale, Tensor) else torch.tensor(scale, device=x.device)
    return torch.where(torch.isnan(x), math.nan, spacing * factor.to(torch.float32))


def _float_format(format: str | FloatFormat) -> FloatFormat:
    found = get_format(format)
    if not isinstance(found, FloatFormat):
        raise AltgradError(f"'{found.name}' is a {type(found).__name__}; codes are defined for float formats.")
    return found
