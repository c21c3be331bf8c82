"""Random bits for stochastic rounding: a pure function of seed, step, tensor name and element.

A stateful generator would make the bits of one tensor depend on all that was drawn before, on the order of the threads
and on how a tensor is cut into shards (torch's own on the CPU is also serial, and slower than the cast). Here element n
of a tensor hashes its own number n with a 64-bit key made of (seed, step, name):

    h = n * 0x9E3779B1 + key_low             (the low 32 bits of everything)
    h = (h ^ h >> 16) * 0x21F0AAAD ^ key_high
    h = (h ^ h >> 15) * 0x735A2D97
    h =  h ^ h >> 15

The multipliers are those of Wellons' two-round integer hash, whose bias is among the lowest known for two
multiplications (github.com/skeeto/hash-prospector); the second half of the key enters between the rounds, so that two
keys do not give permutations of one sequence. Numbers from 2^32 on continue under a further key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError

MAX_RANDOM_BITS = 32

_GOLDEN, _FIRST, _SECOND = 0x9E3779B1, 0x21F0AAAD, 0x735A2D97
_LOW = 0xFFFFFFFF
_BASE = 2**62


@attrs.frozen(kw_only=True)
class Draw:
    """Names the random bits of one cast; the same names draw the same bits, in any process and on any device.

    The tensor is looked at as a matrix [rows, columns]: its last dimension, and the product of the others. A shard of a
    larger matrix says where it begins and how many columns the whole has, and draws what the whole would.
    """

    seed: int
    """The run's seed, any integer."""
    step: int = 0
    """The training step, any integer."""
    name: str = ""
    """The tensor's name; two tensors of one step must not share it."""
    start: tuple[int, int] = (0, 0)
    """Row and column, in the whole matrix, of the tensor's first element."""
    columns: int | None = None
    """Columns of the whole matrix; None: those of the tensor."""

    def key(self, page: int = 0) -> tuple[int, int]:
        """Return the low and the high 32 bits of the key for the elements numbered from ``page * 2**32``."""
        text = f"{self.seed} {self.step} {page} {self.name}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def layout(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (number of the first element, columns of the tensor, columns of the whole) for a tensor's shape.

        Raises ``AltgradError`` when the tensor does not fit beside its start in the whole, and for a seed or step that
        is no integer.
        """
        for field, value in (("seed", self.seed), ("step", self.step)):
            if not isinstance(value, int):
                raise AltgradError(f"The {field} of a Draw is an integer, got {value!r:.60}; pass int(...).")
        columns = shape[-1] if len(shape) else 1
        whole = columns if self.columns is None else self.columns
        row, column = self.start
        if row < 0 or column < 0 or column + columns > whole:
            raise AltgradError(
                f"A shard of {columns} columns that starts at row {row}, column {column} does not lie in a tensor of "
                f"{whole} columns; Draw(start=..., columns=...) describe the whole tensor."
            )
        first = row * whole + column
        if first + math.prod(shape[:-1]) * whole >= 2**63:
            raise AltgradError(
                f"A shard that starts at row {row} of {whole} columns has elements numbered from 2^63 on, which draw no bits."
            )
        return first, columns, whole


@attrs.define(kw_only=True, eq=False)  # compiled code makes them, and frozen ones it cannot
class Keys:
    """A ``Draw`` to compiled code: its keys, drawn when the code runs, for the elements of a whole tensor from 0 on.

    The names, seeds and steps that they are made of would be constants of the code.
    """

    keys: Tensor
    """``Draw.key`` of each page of 2^32 elements: int64 [pages, 2] on the CPU."""

    def layout(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return what ``Draw.layout`` does."""
        columns = shape[-1] if len(shape) else 1
        return 0, columns, columns


def random_bits(draw: Draw | Keys, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return int64 numbers from 0 to 2^32 - 1 of the given shape, uniform, one for each element."""
    first, columns, whole = draw.layout(shape)
    place = torch.device("cpu" if device is None else device)
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=torch.int64, device=place)
    if columns == whole:
        number = torch.arange(first, first + count, device=place)
    else:
        rows = torch.arange(count // columns, device=place) * whole + first
        number = (rows[:, None] + torch.arange(columns, device=place)).reshape(-1)
    pages = pages_of(draw, shape)
    keys: Sequence[tuple[int | Tensor, int | Tensor]]
    if isinstance(draw, Draw) and not torch.compiler.is_compiling():
        keys = [draw.key(page) for page in pages]
    else:
        there = traced_keys(draw, shape).to(place, non_blocking=True)
        keys = [(there[n, 0], there[n, 1]) for n in range(len(pages))]
    low = number & _LOW
    result = _hash(low, keys[0])
    for page, key in zip(pages[1:], keys[1:], strict=True):
        result = torch.where(number >> 32 == page, _hash(low, key), result)
    return result.view(tuple(shape))


def pages_of(draw: Draw | Keys, shape: Sequence[int]) -> range:
    """Return which pages of 2^32 elements those of a tensor, which is not empty, lie on."""
    first, columns, whole = draw.layout(shape)
    last = first + (math.prod(shape) // columns - 1) * whole + columns - 1
    return range(first >> 32, (last >> 32) + 1)


def traced_keys(draw: Draw | Keys, shape: Sequence[int]) -> Tensor:
    """Return the keys of ``pages_of``, int64 [pages, 2] on the CPU, in compiled code."""
    if isinstance(draw, Keys):
        return draw.keys
    pages = pages_of(draw, shape)
    keys: Tensor = _draw_keys(_digits(draw.seed), _digits(draw.step), draw.name, pages.start, len(pages))
    return keys


def keys_of(draw: Draw, pages: range) -> Tensor:
    """Return the keys of pages as a tensor, int64 [pages, 2] on the CPU."""
    return torch.tensor([draw.key(page) for page in pages], dtype=torch.int64, device="cpu")


def _digits(number: int) -> list[int]:
    """Return an integer as digits to the base 2^62, the lowest first; the last one has the sign.

    An operator takes integers of 64 bits, and usually this is one. By division, which a compiler can trace.
    """
    digits = []
    while not -(2**63) <= number < 2**63:
        digits.append(number % _BASE)
        number = number // _BASE
    return [*digits, number]


def _integer(digits: Sequence[int]) -> int:
    """Undo ``_digits``."""
    return sum(digit * _BASE**place for place, digit in enumerate(digits))


# To a tracing compiler an operator: the key is made of text, and a new step must not be a new graph.
@torch.library.custom_op(
    "altgrad::draw_keys",
    mutates_args=(),
    schema="(SymInt[] seed, SymInt[] step, str name, SymInt first_page, SymInt pages) -> Tensor",
)
def _draw_keys(seed: list[int], step: list[int], name: str, first_page: int, pages: int) -> Tensor:
    draw = Draw(seed=_integer(seed), step=_integer(step), name=name)
    return keys_of(draw, range(first_page, first_page + pages))


@_draw_keys.register_fake
def _(seed: list[int], step: list[int], name: str, first_page: int, pages: int) -> Tensor:
    return torch.empty((pages, 2), dtype=torch.int64, device="cpu")


def _hash(number: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Hash int64 numbers below 2^32. No product reaches 2^63: the multipliers count as signed 32-bit numbers."""
    h = (number * (_GOLDEN - 2**32) + key[0]) & _LOW
    h = (((h ^ (h >> 16)) * _FIRST) & _LOW) ^ key[1]
    h = ((h ^ (h >> 15)) * _SECOND) & _LOW
    return h ^ (h >> 15)
