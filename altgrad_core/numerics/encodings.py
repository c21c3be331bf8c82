"""What codes mean and which code a value has, as tensors: the inside of ``altgrad_core.numerics.codes``."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat, TableFormat

NAN_ORDINAL = -(2**63)
"""What ``ordinal`` returns for NaN, which has no place in the order."""

_MANTISSA_64 = 52
_BIAS_64 = 1023


_BYTE = 8
# From about so many elements on, looking up in a table made once is several times as fast as computing.
_WORTH_A_TABLE = 4096


def codes_of(q: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the codes of values of the format (float32 or float64), int64; what NaN gets means nothing."""
    if q.numel() > _WORTH_A_TABLE and format.bits <= _BYTE and format.fits_bfloat16:
        # All values are bfloat16 numbers, of which there are 2^16.
        place = q.to(torch.bfloat16).view(torch.int16).to(torch.int32) & 0xFFFF
        return _bfloat16_codes(format).to(q.device).index_select(0, place.reshape(-1)).view(q.shape).to(torch.int64)
    wide = q.double()
    return _code_of_table(wide, format) if isinstance(format, TableFormat) else _code_of_float(wide, format)


@functools.lru_cache(maxsize=64)
def _bfloat16_codes(format: FloatFormat | TableFormat) -> Tensor:
    """Return the code of each bfloat16 number that is a value of the format, by its bits, uint8 [2^16]."""
    code = torch.arange(2**format.bits)
    value = values_of(code, format)
    codes = torch.zeros(2**16, dtype=torch.uint8)
    place = value.to(torch.bfloat16).view(torch.int16).to(torch.int64) & 0xFFFF
    number = ~torch.isnan(value)
    codes[place[number]] = code[number].to(torch.uint8)
    if not format.has_negative_zero:
        codes[0x8000] = codes[0]
    return codes


def exponent_and_fraction(size: Tensor) -> tuple[Tensor, Tensor]:
    """Return floor(log2(size)) and the 52 fraction bits, int64, of positive float64 numbers, subnormals included."""
    small = size < 2.0**-1000
    bits = torch.where(small, size * 2.0**100, size).view(torch.int64)
    exponent = (bits >> _MANTISSA_64) - _BIAS_64 - torch.where(small, 100, 0)
    return exponent, bits & (2**_MANTISSA_64 - 1)


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x * 2^exponent (float64), exactly where the result is a float64: in two steps, either in range."""
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + _BIAS_64) << _MANTISSA_64).view(torch.float64)
    return x


def _code_of_float(q: Tensor, format: FloatFormat) -> Tensor:
    """Return the codes of values of a float format (float64); what NaN gets means nothing."""
    m = format.mantissa_bits
    size = q.abs()
    exponent, fraction = exponent_and_fraction(size)
    normal = ((exponent - format.min_exponent + 1) << m) + (fraction >> (_MANTISSA_64 - m))
    # Below the smallest normal a value counts units.
    few = torch.where(size < math.ldexp(1.0, format.min_exponent), size, 0.0)
    units = times_power(few, torch.full_like(exponent, m - format.min_exponent))
    code = torch.where(size < math.ldexp(1.0, format.min_exponent), units.to(torch.int64), normal)
    if format.inf_code is not None:
        code = torch.where(torch.isinf(q), format.inf_code, code)
    return torch.where(torch.signbit(q), code | format.sign_bit, code)


def values_of(codes: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the values of codes in range, float64."""
    if isinstance(format, TableFormat):
        return order_of(format).table.to(codes.device)[codes]
    if codes.numel() > _WORTH_A_TABLE and format.bits <= _BYTE:
        return _values(format).to(codes.device).index_select(0, codes.reshape(-1)).view(codes.shape)
    return _value_of_float(codes, format)


@functools.lru_cache(maxsize=64)
def _values(format: FloatFormat) -> Tensor:
    return _value_of_float(torch.arange(2**format.bits), format)


def _value_of_float(codes: Tensor, format: FloatFormat) -> Tensor:
    m = format.mantissa_bits
    magnitude = codes & (2 ** (format.exponent_bits + m) - 1)
    field, mantissa = magnitude >> m, magnitude & (2**m - 1)
    mantissa = torch.where(field > 0, mantissa + 2**m, mantissa)
    value = times_power(mantissa.double(), field.clamp(min=1) - format.bias - m)
    if format.specials != "none":
        value = torch.where(magnitude > format.max_code, math.nan, value)
    if format.inf_code is not None:
        value = torch.where(magnitude == format.inf_code, math.inf, value)
    negative = (codes & format.sign_bit) != 0
    value = torch.where(negative, -value, value)
    if format.nan_is_negative_zero:
        value = torch.where(negative & (magnitude == 0), math.nan, value)
    return value


def value_at(place: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the value at a place in the order (see ``ordinal``), float64; NaN where there is none."""
    if isinstance(format, TableFormat):
        order = order_of(format)
        index = place + order.zero
        inside = (index >= 0) & (index < order.sorted.numel())
        return torch.where(inside, order.sorted.to(place.device)[torch.where(inside, index, 0)], math.nan)
    last = format.max_code if format.inf_code is None else format.inf_code
    inside = (place <= last) & (place >= (-last if format.signed else 0))
    magnitude = torch.where(inside, place, 0).abs()
    value = values_of(torch.where(place < 0, magnitude | format.sign_bit, magnitude), format)
    return torch.where(inside, value, math.nan)


class Order:
    """What ``TableFormat`` says, as tensors on the CPU."""

    def __init__(self, format: TableFormat) -> None:
        self.table = torch.tensor(format.table, dtype=torch.float64)
        """Value of each code, float64."""
        number = ~torch.isnan(self.table)
        self.sorted = torch.unique(self.table[number] + 0.0)
        """The values, infinities too, ascending, zero once."""
        self.zero = int((self.sorted < 0).sum())
        """Index in ``sorted`` of place 0."""
        self.code = torch.tensor([format.table.index(value) for value in self.sorted.tolist()])
        """Code of each of ``sorted``."""
        place = torch.searchsorted(self.sorted, self.table + 0.0) - self.zero
        self.place = torch.where(number, place, NAN_ORDINAL)
        """Place of each code."""
        self.negative_zero: int | None = None
        """Code of -0."""
        if format.has_negative_zero:
            both = ((self.table == 0) & torch.signbit(self.table)).nonzero()
            self.negative_zero = int(both[0])
        positive = ((self.table == 0) & ~torch.signbit(self.table)).nonzero()
        if len(positive):
            self.code[self.zero] = int(positive[0])


@functools.lru_cache(maxsize=64)
def order_of(format: TableFormat) -> Order:
    """Return a table's order, made once."""
    return Order(format)


def _code_of_table(q: Tensor, format: TableFormat) -> Tensor:
    order = order_of(format)
    index = torch.searchsorted(order.sorted.to(q.device), q.contiguous()).clamp(max=order.sorted.numel() - 1)
    code = order.code.to(q.device)[index]
    if order.negative_zero is None:
        return code
    return torch.where((q == 0) & torch.signbit(q), order.negative_zero, code)


def table_spacing(y: Tensor, format: TableFormat) -> Tensor:
    """Return the distance from the value at or next to ``y`` (float64), towards zero, to the one after it."""
    numbers = torch.tensor(format.numbers, dtype=torch.float64, device=y.device)
    y = torch.where(torch.isnan(y), 0.0, y).contiguous()
    # The gap that begins at or below y; for negative numbers the one that ends at or above.
    upwards = torch.searchsorted(numbers, y, right=True) - 1
    downwards = torch.searchsorted(numbers, y) - 1
    gap = torch.where(y < 0, downwards, upwards).clamp(0, numbers.numel() - 2)
    return numbers.diff()[gap]
