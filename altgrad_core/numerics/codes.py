"""Codes of a format: ``encode``, ``decode``, their order, neighbouring values and their distance, all values, packing.

For storage, for counting what moved by how many steps, and for tests; a cast itself never makes codes. A ``FloatFormat``
is computed with, a ``TableFormat`` looked up. The elements of a ``BlockFormat`` have codes together with their scales:
see ``altgrad_core.numerics.blocks``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.cast import inverse_scale, quantize
from altgrad_core.numerics.formats import FloatFormat, Format, TableFormat
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.stochastic import MAX_RANDOM_BITS, Draw

NAN_ORDINAL = -(2**63)
"""What ``ordinal`` returns for NaN, which has no place in the order."""

_MANTISSA_64 = 52
_BIAS_64 = 1023
_LISTED_BITS = 20


def encode(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | None = None,
    random_bits: int = MAX_RANDOM_BITS,
    nan_code: int | None = None,
) -> Tensor:
    """Return the codes (int64, shape of ``x``) of the values that x / scale rounds to, as ``quantize`` rounds.

    NaN gets ``nan_code``, by default ``format.nan_code``. For a format without a NaN code ``nan_code`` must be given
    where ``x`` may hold NaN: otherwise the tensor is searched (which waits for an accelerator) and a NaN raises
    ``AltgradError``.
    """
    fmt = _with_codes(format)
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
    # Dividing in float32 first gives the values that quantize() gives; float64 then holds the values of all formats.
    wide = x.detach() if x.dtype is torch.float64 else x.detach().float()
    y = wide * inverse_scale(scale)
    if not fmt.fits_float32:
        y = y.double()
    q = quantize(y, fmt, rounding=rounding, saturation=saturation, draw=draw, random_bits=random_bits).double()
    code = _code_of_table(q, fmt) if isinstance(fmt, TableFormat) else _code_of_float(q, fmt)
    return torch.where(torch.isnan(q), nan_code, code)


def decode(codes: Tensor, format: str | Format, *, scale: float | Tensor = 1.0) -> Tensor:
    """Return scale * value of each code, in the shape of ``codes`` (any integer dtype; higher bits are not read).

    float32, or float64 for a format that float32 does not hold (``fits_float32``).
    """
    fmt = _with_codes(format)
    value = _values_of(codes.to(torch.int64) & (2**fmt.bits - 1), fmt)
    factor = scale.detach().float() if isinstance(scale, Tensor) else torch.tensor(scale, device=codes.device)
    return value.to(_holder(fmt)) * factor.to(torch.float32)


def ordinal(codes: Tensor, format: str | Format) -> Tensor:
    """Return the place of each code in the order of values, int64: 0 for zero, +-1 for its neighbours, and so on.

    Both zeros have place 0, Inf comes one after the largest finite value, NaN is ``NAN_ORDINAL``. In a table without
    zero the smallest positive value has place 0.
    """
    fmt = _with_codes(format)
    codes = codes.to(torch.int64) & (2**fmt.bits - 1)
    if isinstance(fmt, TableFormat):
        return _order(fmt).place.to(codes.device)[codes]
    magnitude = codes & ~fmt.sign_bit
    negative = (codes & fmt.sign_bit) != 0
    nan = magnitude > (fmt.max_code if fmt.inf_code is None else fmt.inf_code)
    if fmt.nan_is_negative_zero:
        nan = nan | (codes == fmt.sign_bit)
    return torch.where(nan, NAN_ORDINAL, torch.where(negative, -magnitude, magnitude))


def neighbours(x: Tensor, format: str | Format) -> tuple[Tensor, Tensor]:
    """Return the largest value of the format below each element of ``x`` and the smallest above, in the shape of ``x``.

    A value of the format has its neighbours in the order of values on either side; zero, be it one code or two, is one
    value. Past the last finite value there is Inf where the format has it, else NaN, as for NaN itself. float32, or
    float64 for a format that float32 does not hold.
    """
    fmt = _with_codes(format)
    wide = x.detach().double()
    number = torch.where(torch.isnan(wide), 1.0, wide)
    code = encode(number, fmt)
    nearest, place = _values_of(code, fmt), ordinal(code, fmt)
    below = torch.where(nearest < number, nearest, _value_at(place - 1, fmt))
    above = torch.where(nearest > number, nearest, _value_at(place + 1, fmt))
    below = torch.where(torch.isnan(wide) | (wide == -math.inf), math.nan, below)
    above = torch.where(torch.isnan(wide) | (wide == math.inf), math.nan, above)
    return below.to(_holder(fmt)), above.to(_holder(fmt))


def ulp(x: Tensor, format: str | Format, *, scale: float | Tensor = 1.0) -> Tensor:
    """Return the distance between neighbouring values of the format around ``x``, in units of x and its shape.

    Around a value it is the distance to the next one away from zero. Below the smallest normal it is that of the
    subnormals, beyond the largest finite value that of the largest; a table's last two on that side count. NaN for NaN.
    float32, or float64 for a format that float32 does not hold.
    """
    fmt = _with_codes(format)
    y = x.detach().double() * inverse_scale(scale)
    if isinstance(fmt, TableFormat):
        spacing = _table_spacing(y, fmt)
    else:
        size = torch.where(torch.isfinite(y), y.abs(), fmt.max_finite)
        exponent = _exponent_and_fraction(size)[0].clamp(fmt.min_exponent, max(fmt.min_exponent, fmt.max_exponent))
        spacing = _times_power(torch.ones_like(size), exponent - fmt.mantissa_bits)
    factor = scale.detach().float() if isinstance(scale, Tensor) else torch.tensor(scale, device=x.device)
    return torch.where(torch.isnan(x), math.nan, spacing.to(_holder(fmt)) * factor.to(torch.float32))


def all_values(format: str | Format) -> Tensor:
    """Return the values of the format in ascending order, infinities too, zero once, NaN not: float64 [n].

    For formats of up to 20 bits.
    """
    fmt = _with_codes(format)
    if fmt.bits > _LISTED_BITS:
        raise AltgradError(f"'{fmt.name}' has 2^{fmt.bits} codes; values are listed for up to {_LISTED_BITS} bits.")
    values = _values_of(torch.arange(2**fmt.bits), fmt)
    return torch.unique(values[~torch.isnan(values)] + 0.0)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes of 1 to 8 bits without gaps: uint8 [ceil(n * bits / 8)] for ``codes`` of n elements, any shape.

    Little-endian: code i has the bits i * bits and following, and bit k is bit k % 8, from the lowest, of byte k // 8.
    So of two 4-bit codes the first has the low half of the byte. Left-over bits are 0; higher bits of codes are not
    read.
    """
    _check_width(bits)
    flat = codes.detach().reshape(-1).to(torch.int64) & (2**bits - 1)
    count = flat.numel()
    # Eight codes are as many bytes as a code has bits.
    groups = torch.nn.functional.pad(flat, (0, -count % 8)).view(-1, 8)
    words = (groups << (bits * torch.arange(8, device=codes.device))).sum(dim=1)
    packed = (words[:, None] >> (8 * torch.arange(bits, device=codes.device))) & 255
    return packed.to(torch.uint8).reshape(-1)[: (count * bits + 7) // 8]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` codes (int64 [count]) that ``pack`` packed; raises ``AltgradError`` for fewer bytes."""
    _check_width(bits)
    need = (count * bits + 7) // 8
    if packed.numel() < need:
        raise AltgradError(f"{count} codes of {bits} bits take {need} bytes, got {packed.numel()}.")
    flat = packed.detach().reshape(-1)[:need].to(torch.int64)
    groups = torch.nn.functional.pad(flat, (0, -need % bits)).view(-1, bits)
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(dim=1)
    codes = (words[:, None] >> (bits * torch.arange(8, device=packed.device))) & (2**bits - 1)
    return codes.reshape(-1)[:count]


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise AltgradError(f"Codes are packed at 1 to 8 bits, got {bits}; wider ones fit integer dtypes.")


def _with_codes(format: str | Format) -> FloatFormat | TableFormat:
    found = get_format(format)
    if isinstance(found, FloatFormat | TableFormat):
        return found
    raise AltgradError(
        f"'{found.name}' is a {type(found).__name__}, whose elements have codes together with their scales: see "
        "altgrad_core.numerics.blocks."
    )


def _holder(format: Format) -> torch.dtype:
    return torch.float32 if format.fits_float32 else torch.float64


def _exponent_and_fraction(size: Tensor) -> tuple[Tensor, Tensor]:
    """Return floor(log2(size)) and the 52 fraction bits, int64, of positive float64 numbers, subnormals included."""
    small = size < 2.0**-1000
    bits = torch.where(small, size * 2.0**100, size).view(torch.int64)
    exponent = (bits >> _MANTISSA_64) - _BIAS_64 - torch.where(small, 100, 0)
    return exponent, bits & (2**_MANTISSA_64 - 1)


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x * 2^exponent (float64), exactly where the result is a float64: in two steps, either in range."""
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + _BIAS_64) << _MANTISSA_64).view(torch.float64)
    return x


def _code_of_float(q: Tensor, format: FloatFormat) -> Tensor:
    """Return the codes of values of a float format (float64); what NaN gets means nothing."""
    m = format.mantissa_bits
    size = q.abs()
    exponent, fraction = _exponent_and_fraction(size)
    normal = ((exponent - format.min_exponent + 1) << m) + (fraction >> (_MANTISSA_64 - m))
    # Below the smallest normal a value counts units.
    few = torch.where(size < math.ldexp(1.0, format.min_exponent), size, 0.0)
    units = _times_power(few, torch.full_like(exponent, m - format.min_exponent))
    code = torch.where(size < math.ldexp(1.0, format.min_exponent), units.to(torch.int64), normal)
    if format.inf_code is not None:
        code = torch.where(torch.isinf(q), format.inf_code, code)
    return torch.where(torch.signbit(q), code | format.sign_bit, code)


def _values_of(codes: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the values of codes in range, float64."""
    if isinstance(format, TableFormat):
        return _order(format).table.to(codes.device)[codes]
    m = format.mantissa_bits
    magnitude = codes & (2 ** (format.exponent_bits + m) - 1)
    field, mantissa = magnitude >> m, magnitude & (2**m - 1)
    mantissa = torch.where(field > 0, mantissa + 2**m, mantissa)
    value = _times_power(mantissa.double(), field.clamp(min=1) - format.bias - m)
    if format.specials != "none":
        value = torch.where(magnitude > format.max_code, math.nan, value)
    if format.inf_code is not None:
        value = torch.where(magnitude == format.inf_code, math.inf, value)
    negative = (codes & format.sign_bit) != 0
    value = torch.where(negative, -value, value)
    if format.nan_is_negative_zero:
        value = torch.where(negative & (magnitude == 0), math.nan, value)
    return value


def _value_at(place: Tensor, format: FloatFormat | TableFormat) -> Tensor:
    """Return the value at a place in the order (see ``ordinal``), float64; NaN where there is none."""
    if isinstance(format, TableFormat):
        order = _order(format)
        index = place + order.zero
        inside = (index >= 0) & (index < order.sorted.numel())
        return torch.where(inside, order.sorted.to(place.device)[torch.where(inside, index, 0)], math.nan)
    last = format.max_code if format.inf_code is None else format.inf_code
    inside = (place <= last) & (place >= (-last if format.signed else 0))
    magnitude = torch.where(inside, place, 0).abs()
    value = _values_of(torch.where(place < 0, magnitude | format.sign_bit, magnitude), format)
    return torch.where(inside, value, math.nan)


class _Order:
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
def _order(format: TableFormat) -> _Order:
    return _Order(format)


def _code_of_table(q: Tensor, format: TableFormat) -> Tensor:
    order = _order(format)
    index = torch.searchsorted(order.sorted.to(q.device), q.contiguous()).clamp(max=order.sorted.numel() - 1)
    code = order.code.to(q.device)[index]
    if order.negative_zero is None:
        return code
    return torch.where((q == 0) & torch.signbit(q), order.negative_zero, code)


def _table_spacing(y: Tensor, format: TableFormat) -> Tensor:
    numbers = torch.tensor(format.numbers, dtype=torch.float64, device=y.device)
    y = torch.where(torch.isnan(y), 0.0, y).contiguous()
    # The gap that begins at or below y; for negative numbers the one that ends at or above.
    upwards = torch.searchsorted(numbers, y, right=True) - 1
    downwards = torch.searchsorted(numbers, y) - 1
    gap = torch.where(y < 0, downwards, upwards).clamp(0, numbers.numel() - 2)
    return numbers.diff()[gap]
