"""Formats that lie, each caught by the check that is named for it. Without its lie each of them is e4m3fn as a table."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.reference import quantize_exactly
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.tables import round_to_table
from altgrad_core.testing import FormatConformance, descriptors, tensors

E4M3FN = get_format("e4m3fn")
TABLE = TableFormat(name="table", table=E4M3FN.values())


def to_nearest(y: Tensor) -> Tensor:
    return round_to_table(y, TABLE)


class Honest(FormatConformance):
    """A format that rounds by itself, to what the table would."""

    format = TableFormat(name="honest", table=TABLE.table, nearest=to_nearest)

    def definition(self, x: float) -> float:
        return quantize_exactly(x, TABLE)


class TestHonest(Honest):
    pass


class TestHonestWithoutADefinition(FormatConformance):
    format = Honest.format


def rounding(nearest: Callable[[Tensor], Tensor]) -> type[Honest]:
    """Return the suite of a format whose own cast is this function."""
    name = nearest.__name__.removeprefix("_")
    format = TableFormat(name=name, table=TABLE.table, nearest=nearest)
    return type(name, (Honest,), {"format": format})


def claiming(format: FloatFormat | TableFormat = TABLE, **claims: object) -> type[FormatConformance]:
    """Return the suite of a format that says something else about itself."""
    lies = type(format)(**{a: getattr(format, a) for a in inspect.signature(type(format)).parameters})
    for name, value in claims.items():
        object.__setattr__(lies, name, value)
    return type("says_" + "_".join(claims), (FormatConformance,), {"format": lies})


def ties_away(y: Tensor) -> Tensor:
    return round_to_table(y, TABLE, "nearest_away")


def rounds_down(y: Tensor) -> Tensor:
    return round_to_table(y, TABLE, "down")


def rounds_twice(y: Tensor) -> Tensor:
    """By way of a format with more digits, which makes ties of what is none."""
    return to_nearest(quantize(y, "e8m5"))


def goes_past(y: Tensor) -> Tensor:
    """To the nearest value but one of those above 1."""
    return torch.where((y > 1) & (y < 400), to_nearest(y * 1.2), to_nearest(y))


def swaps(y: Tensor) -> Tensor:
    """Has two values change places."""
    q = to_nearest(y)
    return torch.where(q == 2.0, 2.25, torch.where(q == 2.25, 2.0, q))


def makes_nan(y: Tensor) -> Tensor:
    return torch.where(y.abs() > 447, math.nan, to_nearest(y))


def invents(y: Tensor) -> Tensor:
    """Gives a number that has no code."""
    q = to_nearest(y)
    return torch.where(q == 3.0, 3.0625, q)


def remembers(y: Tensor, calls: itertools.count = itertools.count()) -> Tensor:  # noqa: B008
    """Rounds up every second time."""
    return round_to_table(y, TABLE, "up") if next(calls) % 2 else to_nearest(y)


def looks_around(y: Tensor) -> Tensor:
    """Rounds in units of the largest number there is."""
    top = y.abs().amax() if y.numel() else y.new_ones(())
    unit = torch.where((top > 0) & (top < 448), top, 448.0)
    return to_nearest(y / unit * 448) * unit / 448


def writes(y: Tensor) -> Tensor:
    """Leaves its result in the tensor that it was given; harmless, since that is never the user's."""
    return y.copy_(to_nearest(y))


def lies_flat(y: Tensor) -> Tensor:
    return to_nearest(y).flatten()


def half_precision(y: Tensor) -> Tensor:
    return to_nearest(y).bfloat16()


def never_negative(y: Tensor) -> Tensor:
    """Rounds positive numbers down, and so is not odd."""
    return torch.where(y > 0, round_to_table(y, TABLE, "down"), to_nearest(y))


def negative_subnormals(y: Tensor) -> Tensor:
    """Rounds ties of negative subnormals alone away from zero."""
    return torch.where((y < 0) & (y > -(2.0**-6)), ties_away(y), to_nearest(y))


def looks_along_rows(y: Tensor) -> Tensor:
    """Rounds the largest of a row of a matrix otherwise, if it is a tie."""
    if y.dim() < 2 or not y.numel():
        return to_nearest(y)
    return torch.where(y == y.amax(-1, keepdim=True), ties_away(y), to_nearest(y))


def draws(y: Tensor) -> Tensor:
    """Draws a number and makes nothing of it."""
    torch.rand(())
    return to_nearest(y)


def asks_for_a_number(y: Tensor) -> Tensor:
    """Looks first whether there is anything to do."""
    return to_nearest(y) if (to_nearest(y) != y).any() else y


def goes_to_the_cpu(y: Tensor) -> Tensor:
    return torch.empty_like(y, device="cpu") if y.device.type == "meta" else to_nearest(y)


def looks_at_the_size(y: Tensor) -> Tensor:
    """Takes a short cut where there are many."""
    return to_nearest(y) if y.numel() < 400_000 else round_to_table(y, TABLE, "toward_zero")


def other_in_float64(y: Tensor) -> Tensor:
    return round_to_table(y, TABLE, "toward_zero") if y.dtype is torch.float64 else to_nearest(y)


class ForgetsNan(TableFormat):
    """Says that its NaN is a number."""

    def value(self, code: int) -> float:
        return 0.0 if math.isnan(self.table[code]) else self.table[code]


class DecodesOtherwise(TableFormat):
    def value(self, code: int) -> float:
        return self.table[code ^ 1]


class Shifted(FloatFormat):
    """Has a bias of which its casts know nothing."""

    def value(self, code: int) -> float:
        return 2 * super().value(code)


def of(format: FloatFormat | TableFormat) -> type[FormatConformance]:
    return type(type(format).__name__, (FormatConformance,), {"format": format})


DISORDER = (*TABLE.numbers[:9], TABLE.numbers[10], TABLE.numbers[9], *TABLE.numbers[11:])
CAUGHT = [
    (claiming(max_finite=480.0), "constants", "max_finite of 'table' is 480.0, expected 448.0"),
    (claiming(E4M3FN, max_finite=240.0), "constants", "max_finite of 'e4m3fn' is 240.0, expected 448.0"),
    (claiming(E4M3FN, max_code=0x77), "constants_of_floats", r"value\(max_code\) of 'e4m3fn' is 240.0, expected 448.0"),
    (claiming(E4M3FN, beyond=512.0), "constants_of_floats", "beyond of 'e4m3fn' is 512.0, expected 480.0"),
    (claiming(min_finite=-1.0), "constants", "min_finite"),
    (claiming(min_positive=2.0**-10), "constants", "min_positive"),
    (claiming(nan_code=None), "constants", "has_nan of 'table' is False"),
    (claiming(has_negative_zero=False), "constants", "has_negative_zero"),
    (claiming(has_negative_inf=True), "constants", "has_negative_inf"),
    (claiming(fits_float32=False), "constants", "fits_float32"),
    (of(ForgetsNan(name="f", table=TABLE.table)), "constants", r"value\(nan_code\)"),
    (claiming(fits_bfloat16=False), "bfloat16_and_float32_hold_the_values", "fits_bfloat16 of 'table' is False"),
    (of(ForgetsNan(name="f", table=TABLE.table)), "every_code_decodes_to_its_value_and_encodes_back", "gave nan, not 0.0"),
    (of(DecodesOtherwise(name="f", table=TABLE.table)), "every_code_decodes_to_its_value_and_encodes_back", "differ"),
    (of(Shifted(name="f", exponent_bits=4, mantissa_bits=3)), "every_code_decodes_to_its_value_and_encodes_back", "differ"),
    (claiming(numbers=DISORDER), "landmarks_and_every_bfloat16_against_a_table", "differ"),
    (claiming(has_negative_zero=False), "landmarks_and_every_bfloat16_against_a_table", "gave -0.0, not 0.0"),
    (claiming(has_negative_zero=False), "odd", "gave"),
    (claiming(E4M3FN, max_finite=240.0), "error_is_at_most_half_an_ulp", "beyond the largest value it is taken"),
    (rounding(ties_away), "landmarks_against_the_scalar_reference", r"-0\.0009765625 gave -0\.001953125, not 0\.0"),
    (rounding(rounds_down), "landmarks_against_the_scalar_reference", "differ"),
    (rounding(rounds_twice), "landmarks_against_the_scalar_reference", "differ"),
    (rounding(swaps), "monotone_and_in_code_order", "a larger number gives no smaller value"),
    (rounding(swaps), "idempotent", "differ"),
    (rounding(goes_past), "landmarks_and_every_bfloat16_against_a_table", "one of the two values around"),
    (rounding(goes_past), "error_is_at_most_half_an_ulp", "one of the two values around"),
    (rounding(makes_nan), "nan_stays_nan_and_nothing_else_becomes_one", "NaN stays NaN"),
    (rounding(makes_nan), "every_code_decodes_to_its_value_and_encodes_back", "differ"),
    (rounding(invents), "decode_of_encode_is_quantize", "differ"),
    (rounding(invents), "values_are_in_order", "differ"),
    (rounding(remembers), "each_element_by_itself", "differ"),
    (rounding(looks_around), "each_element_by_itself", "differ"),
    (rounding(remembers), "a_power_of_two_scales_the_grid", "differ"),
    (rounding(looks_at_the_size), "each_element_by_itself", "differ"),
    (rounding(looks_along_rows), "each_element_by_itself", "differ"),
    (rounding(asks_for_a_number), "on_every_device", "fails on the device 'meta'"),
    (rounding(goes_to_the_cpu), "on_every_device", "returns a tensor on cpu, its argument is on meta"),
    (rounding(draws), "each_element_by_itself", "has drawn random numbers"),
    (rounding(negative_subnormals), "landmarks_against_the_scalar_reference", r"-0\.0009765625 gave -0\.001953125, not 0\.0"),
    (rounding(negative_subnormals), "odd", "differ"),
    (rounding(never_negative), "odd", "differ"),
    (rounding(other_in_float64), "dtypes_agree", "differ"),
    (rounding(lies_flat), "shape_stride_and_input_are_respected", r"nearest\(\) returns a tensor of its argument's shape"),
    (rounding(half_precision), "dtypes_agree", r"nearest\(\) returns .*torch.bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("liar", "check", "said"), CAUGHT, ids=[f"{liar.__name__}-{check}" for liar, check, _ in CAUGHT]
)
def test_a_lie_is_caught(liar: type[FormatConformance], check: str, said: str) -> None:
    suite = liar()
    test = getattr(suite, f"test_{check}")
    arguments = {"rounding": "nearest_even"} if check == "landmarks_against_the_scalar_reference" else {}
    with pytest.raises((AssertionError, AltgradError), match=said):
        test(**arguments)


def test_every_check_catches_somebody() -> None:
    checks = {name.removeprefix("test_") for name in dir(FormatConformance) if name.startswith("test_")}
    assert checks == {check for _, check, _ in CAUGHT}


def test_what_is_written_to_the_argument_does_no_harm() -> None:
    suite = rounding(writes)()
    suite.test_shape_stride_and_input_are_respected()
    assert suite.count


@given(descriptors().flatmap(lambda f: tensors(f, strided=True).map(lambda x: (f, x))))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_drawn_formats_and_tensors(drawn: tuple[FloatFormat | TableFormat, Tensor]) -> None:
    f, x = drawn
    assert f.bits <= 12
    assert quantize(x, f).shape == x.shape
