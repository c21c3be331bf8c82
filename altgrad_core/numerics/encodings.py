"""What codes mean and which code a value has, as tensors: the inside of ``altgrad_core.numerics.codes``.

A ``FloatFormat`` is computed with. A ``TableFormat`` is looked up, in tensors made once for each table; to a tracing
compiler such a look-up is an operator, since tracing would make the table again in every call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.tableformat import is_negative_zero, is_number, read_constants

NAN_ORDINAL = -(2**63)
"""What ``ordinal`` returns for NaN, which has no place in the order."""

_MANTISSA_64 = 52
_BIAS_64 = 1023

_BYTE = 8
# From about so many elements on, looking up in a table made once is several times as fast as computing.
_WORTH_A_TABLE = 4096


def codes_of(q: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the codes of values of the format (float32 or float64), int64; what NaN gets means nothing."""
    if not torch.compiler.is_compiling() and (
        q.numel() > _WORTH_A_TABLE and format.bits <= _BYTE and format.fits_bfloat16
    ):
        # All values are bfloat16 numbers, of which there are 2^16.
        place = q.to(torch.bfloat16).view(torch.int16).to(torch.int32) & 0xFFFF
        return _bfloat16_codes(format).to(q.device).index_select(0, place.reshape(-1)).view(q.shape).to(torch.int64)
    wide = q.double()
    return _look_up("code", wide, format) if isinstance(format, TableFormat) else _code_of_float(wide, format)


@functools.lru_cache(maxsize=64)
def _bfloat16_codes(format: FloatFormat | TableFormat) -> Tensor:
    """Return the code of each bfloat16 number that is a value of the format, by its bits, uint8 [2^16]."""
    code = torch.arange(2**format.bits, device="cpu")
    value = values_of(code, format)
    codes = torch.zeros(2**16, dtype=torch.uint8, device="cpu")
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
    grid = grid_of(format)
    m, lowest = grid.mantissa_bits, 1 - grid.bias
    size = q.abs()
    exponent, fraction = exponent_and_fraction(size)
    normal = ((exponent - lowest + 1) << m) + (fraction >> (_MANTISSA_64 - m))
    # Below the smallest normal a value counts units.
    few = torch.where(size < 2.0**lowest, size, 0.0)
    units = times_power(few, torch.full_like(exponent, m - lowest))
    code = torch.where(size < 2.0**lowest, units.to(torch.int64), normal)
    if format.inf_code is not None:
        code = torch.where(torch.isinf(q), format.inf_code, code)
    return torch.where(torch.signbit(q), code | format.sign_bit, code)


def values_of(codes: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the values of codes in range, float64."""
    if isinstance(format, TableFormat):
        return _look_up("value", codes, format)
    if not torch.compiler.is_compiling() and codes.numel() > _WORTH_A_TABLE and format.bits <= _BYTE:
        return _values(format).to(codes.device).index_select(0, codes.reshape(-1)).view(codes.shape)
    return _value_of_float(codes, format)


@functools.lru_cache(maxsize=64)
def _values(format: FloatFormat) -> Tensor:
    return _value_of_float(torch.arange(2**format.bits, device="cpu"), format)


def _value_of_float(codes: Tensor, format: FloatFormat) -> Tensor:
    grid = grid_of(format)
    m = grid.mantissa_bits
    magnitude = codes & (2 ** (grid.exponent_bits + m) - 1)
    field, mantissa = magnitude >> m, magnitude & (2**m - 1)
    mantissa = torch.where(field > 0, mantissa + 2**m, mantissa)
    value = times_power(mantissa.double(), field.clamp(min=1) - grid.bias - m)
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
        return _look_up("value_at", place, format)
    last = format.max_code if format.inf_code is None else format.inf_code
    inside = (place <= last) & (place >= (-last if format.signed else 0))
    magnitude = torch.where(inside, place, 0).abs()
    value = values_of(torch.where(place < 0, magnitude | format.sign_bit, magnitude), format)
    return torch.where(inside, value, math.nan)


def table_places(codes: Tensor, format: TableFormat) -> Tensor:
    """Return the place of each code in range in the order (see ``ordinal``), int64."""
    return _look_up("place", codes, format)


def table_spacing(y: Tensor, format: TableFormat) -> Tensor:
    """Return the distance from the value at or next to ``y`` (float64), towards zero, to the one after it."""
    return _look_up("spacing", y, format)


class _Order:
    """What ``TableFormat.constants`` says, as tensors."""

    def __init__(self, constants: str, device: torch.device) -> None:
        values, _ = read_constants(constants)
        finite = {value: code for code, value in enumerate(values) if is_number(value)}
        codes = finite | {value: code for code, value in enumerate(values) if math.isinf(value)}
        listed = sorted(codes)
        numbers = sorted(finite)
        self.table = torch.tensor(values, dtype=torch.float64, device=device)
        """Value of each code, float64."""
        self.numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        """The finite values, ascending, zero once."""
        self.sorted = torch.tensor(listed, dtype=torch.float64, device=device)
        """The values, infinities too, ascending, zero once."""
        self.code_of_sorted = torch.tensor([codes[value] for value in listed], device=device)
        """Code of each of ``sorted``, that of +0 for zero."""
        self.zero = sum(value < 0 for value in listed)
        """Index in ``sorted`` of place 0."""
        place = torch.searchsorted(self.sorted, self.table + 0.0) - self.zero
        self.place_of_code = torch.where(torch.isnan(self.table), NAN_ORDINAL, place)
        """Place of each code."""
        self.negative_zero = next((code for code, value in enumerate(values) if is_negative_zero(value)), None)
        """Code of -0."""

    def code(self, q: Tensor) -> Tensor:
        index = torch.searchsorted(self.sorted, q.contiguous()).clamp(max=self.sorted.numel() - 1)
        code = self.code_of_sorted[index]
        if self.negative_zero is None:
            return code
        return torch.where((q == 0) & torch.signbit(q), self.negative_zero, code)

    def value(self, codes: Tensor) -> Tensor:
        return self.table[codes]

    def place(self, codes: Tensor) -> Tensor:
        return self.place_of_code[codes]

    def value_at(self, place: Tensor) -> Tensor:
        index = place + self.zero
        inside = (index >= 0) & (index < self.sorted.numel())
        return torch.where(inside, self.sorted[torch.where(inside, index, 0)], math.nan)

    def spacing(self, y: Tensor) -> Tensor:
        y = torch.where(torch.isnan(y), 0.0, y).contiguous()
        # The gap that begins at or below y; for negative numbers the one that ends at or above.
        upwards = torch.searchsorted(self.numbers, y, right=True) - 1
        downwards = torch.searchsorted(self.numbers, y) - 1
        gap = torch.where(y < 0, downwards, upwards).clamp(0, self.numbers.numel() - 2)
        return self.numbers.diff()[gap]


_order = functools.lru_cache(maxsize=64)(_Order)

# What is looked up -> how, and the dtype of what is found.
_LOOK_UPS: dict[str, tuple[Callable[[_Order, Tensor], Tensor], torch.dtype]] = {
    "code": (_Order.code, torch.int64),
    "value": (_Order.value, torch.float64),
    "place": (_Order.place, torch.int64),
    "value_at": (_Order.value_at, torch.float64),
    "spacing": (_Order.spacing, torch.float64),
}


def _look_up(what: str, x: Tensor, format: TableFormat) -> Tensor:
    """Return what a table has for each element of ``x``: codes (int64), or values (float64), in the shape of ``x``."""
    found: Tensor = (_look_up_op if torch.compiler.is_compiling() else _looked_up)(what, x, format.constants)
    return found


def _looked_up(what: str, x: Tensor, constants: str) -> Tensor:
    return _LOOK_UPS[what][0](_order(constants, x.device), x).contiguous()


_look_up_op = torch.library.custom_op(
    "altgrad::look_up", _looked_up, mutates_args=(), schema="(str what, Tensor x, str constants) -> Tensor"
)


@_look_up_op.register_fake
def _(what: str, x: Tensor, _: str) -> Tensor:
    return torch.empty_like(x, dtype=_LOOK_UPS[what][1], memory_format=torch.contiguous_format)
