"""Block formats against the formulas of their specifications in exact rational arithmetic, and MX against torchao.

Exact means fractions: the scale by comparing fractions with powers of two, an element by a search through the element
format's values. Where a specification computes in float32 (the two levels of NVFP4), each step is a fraction rounded to
float32, once.
"""

from __future__ import annotations

import bisect
import functools
import math
from fractions import Fraction

import gfloat
import gfloat.formats
import pytest
import torch
from torch import Tensor

from altgrad_core.numerics import BlockFormat, Format, get_format
from altgrad_core.numerics.blocks import MX_MODES, MXMode, block_scale, decode_blocks, encode_blocks, mx_scale
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.testing.exact import assert_same

MX = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8"]


def block_format(name: str) -> BlockFormat:
    found = get_format(name)
    assert isinstance(found, BlockFormat)
    return found


# ---------------------------------------------------------------------------------------------- exact definitions


def floor_log2(x: Fraction) -> int:
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if x >= Fraction(2) ** exponent else exponent - 1


def ceil_log2(x: Fraction) -> int:
    exponent = floor_log2(x)
    return exponent if x == Fraction(2) ** exponent else exponent + 1


@functools.cache
def numbers(element: Format) -> tuple[list[Fraction], list[int]]:
    """Return the finite values in order, zero once, with their codes."""
    values = {Fraction(v): code for code, v in reversed(list(enumerate(element.values()))) if math.isfinite(v)}
    ordered = sorted(values)
    return ordered, [values[v] for v in ordered]


def nearest(x: Fraction, element: Format) -> Fraction:
    """Return the nearest value of the element format, saturating, ties to the even code."""
    values, codes = numbers(element)
    above = min(bisect.bisect_left(values, x), len(values) - 1)
    below = max(above - 1, 0)
    if x >= values[above]:
        return values[above]
    up, down = values[above] - x, x - values[below]
    if up == down:
        return values[above] if codes[above] % 2 == 0 else values[below]
    return values[above] if up < down else values[below]


def exact_mx_scale(amax: float, element: Format, mode: MXMode) -> Fraction:
    """OCP MX 1.0, 6.3 (floor), and the three other ways that are in use."""
    if amax == 0 or not math.isfinite(amax):
        return Fraction(1)
    size, largest = Fraction(amax), Fraction(element.max_finite)
    emax = floor_log2(largest)
    if mode == "floor":
        exponent = floor_log2(size) - emax
    elif mode == "ceil":
        exponent = ceil_log2(size) - emax
    elif mode == "rceil":
        exponent = ceil_log2(size / largest)
    else:
        # To the mantissa bits of the top binade, half up, and then as floor.
        bits = {"e4m3fn": 3, "e5m2": 2, "e3m2fn": 2, "e2m3fn": 3, "e2m1fn": 1, "int8": 6}[element.name]
        unit = Fraction(2) ** (floor_log2(size) - bits)
        exponent = floor_log2(math.floor(size / unit + Fraction(1, 2)) * unit) - emax
    return Fraction(2) ** max(-127, min(127, exponent))


def float32(x: Fraction) -> Fraction:
    """Round a positive fraction to float32, ties to even."""
    unit = Fraction(2) ** (max(floor_log2(x), -126) - 23)
    return round(x / unit) * unit


def exact_mx(row: list[float], element: Format, mode: MXMode) -> list[float]:
    scale = exact_mx_scale(max(map(abs, row)) if not any(map(math.isnan, row)) else math.nan, element, mode)
    return [scaled(x, scale, Fraction(1) / scale, element) for x in row]


def exact_nvfp4(row: list[float], tensor_amax: float, element: Format, scales: Format) -> list[float]:
    """NVIDIA's recipe: s_tensor = amax / (448 * 6), s_block = e4m3fn((block_amax / 6) / s_tensor), in float32."""
    amax = max(map(abs, row))
    tensor_scale = float32(Fraction(tensor_amax) / (448 * 6)) if tensor_amax else Fraction(1)
    share = float32(float32(Fraction(amax) / 6) / tensor_scale) if amax else Fraction(0)
    block = max(nearest(share, scales), Fraction(1, 512)) if amax else Fraction(1)
    scale = float32(block * tensor_scale)
    return [scaled(x, scale, float32(1 / scale), element) for x in row]


def scaled(x: float, scale: Fraction, inverse: Fraction, element: Format) -> float:
    """Return scale * (the element nearest to x * inverse), as float32 arithmetic does it."""
    if math.isnan(x):
        return math.nan
    if math.isinf(x):
        value = numbers(element)[0][-1 if x > 0 else 0]
    else:
        product = Fraction(x) * inverse
        rounded = float32(abs(product)) * (1 if product >= 0 else -1) if product else product
        value = nearest(rounded, element)
    result = value * scale
    whole = (float32(abs(result)) if result else result) * (1 if result >= 0 else -1)
    if whole == 0:
        return math.copysign(0.0, x) if element.has_negative_zero else 0.0
    return float(whole)


# --------------------------------------------------------------------------------------------------------- blocks


@functools.cache
def rows(name: str) -> Tensor:
    """Blocks at random over all magnitudes, and adversarial ones, [n, 3 blocks and a ragged one]."""
    f = block_format(name)
    size, generator = f.block, torch.Generator().manual_seed(len(name))
    columns = 3 * size + size // 2 + 1
    x = torch.randn(40, columns, generator=generator) * torch.randint(-100, 100, (40, 1), generator=generator).exp2()
    heavy = torch.randn(20, columns, generator=generator) / torch.rand(20, columns, generator=generator).clamp_min(1e-6)
    hard = []
    # amax on, just below and just above a power of two and a power of two times the largest value.
    for exponent in (-120, -40, -1, 0, 7, 63, 110):
        for corner in (1.0, f.max_finite, 1.5, 1.75, 1.9375, 448.0 * 6.0):
            for neighbour in (-math.inf, 0.0, math.inf):
                amax = torch.tensor(corner * 2.0**exponent)
                amax = torch.nextafter(amax, torch.tensor(neighbour)) if neighbour else amax
                hard.append((torch.rand(columns, generator=generator) * 2 - 1) * amax)
                hard[-1][::size] = amax
    hard = hard[:: max(1, len(hard) // 60)]
    ties = []  # every value and every midpoint, times a power of two, beside the largest value
    values = torch.tensor([float(v) for v in numbers(f.element)[0]])
    points = torch.cat([values, (values[1:] + values[:-1]) / 2])
    for start in range(0, len(points), columns):
        tie = torch.nn.functional.pad(points[start : start + columns], (0, max(0, start + columns - len(points))))
        tie[::size] = f.max_finite
        ties += [tie * 2.0**-9, -tie]
    edges = torch.zeros(8, columns)
    edges[1] = -0.0
    edges[2, 1], edges[2, size] = math.inf, 1.0
    edges[3, 2], edges[3, size:] = math.nan, torch.randn(columns - size, generator=generator)
    edges[4] = torch.randn(columns, generator=generator) * 2.0**-140  # float32 subnormals
    edges[5] = torch.randn(columns, generator=generator).sign() * 3.4028234663852886e38
    edges[6, ::size] = 2.0**-149
    edges[7, -1] = 5.0
    if f.tensor_scale:  # one number that is not finite is that of the whole tensor
        edges[2:4] = 0.0
    return torch.cat([x, heavy, torch.stack(hard), torch.stack(ties), edges])


@pytest.mark.parametrize("mode", MX_MODES)
@pytest.mark.parametrize("name", MX)
def test_mx_in_fractions(name: str, mode: MXMode) -> None:
    f = block_format(name)
    # Modes differ in the scale, which the next test tries; elements go the same way in all.
    x = rows(name)[::7] if mode != "rceil" else rows(name)[::2]
    scale, block = block_scale(x, f, mode=mode)
    got = quantize(x, f.element, scale=scale, block=block)
    expected = [
        [
            value
            for start in range(0, len(row), f.block)
            for value in exact_mx(row[start : start + f.block], f.element, mode)
        ]
        for row in x.tolist()
    ]
    assert_same(got, torch.tensor(expected), x)
    if mode == "rceil":
        assert_same(quantize(x, name), got, x)


@pytest.mark.parametrize("name", MX)
def test_mx_scales_next_to_every_power_of_two(name: str) -> None:
    """Where a logarithm would be off by one: around 2^k, around max_finite * 2^k, and where ``even`` carries."""
    element = block_format(name).element
    corners = [1.0, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.984375, 1.9921875, element.max_finite]
    exact = torch.tensor([c * 2.0**e for c in corners for e in range(-140, 120, 3)], dtype=torch.float64).float()
    exact = exact[torch.isfinite(exact) & (exact > 0)]
    infinity = torch.tensor(math.inf)
    amax = torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)])
    amax = torch.cat([amax, torch.tensor([0.0, math.inf, math.nan, 2.0**-149, 3.4028234663852886e38])])
    for mode in MX_MODES:
        expected = torch.tensor([float(exact_mx_scale(value, element, mode)) for value in amax.tolist()])
        assert_same(mx_scale(amax, element, mode), expected, amax)


def test_nvfp4_in_fractions() -> None:
    """Each of many tensors, so that the tensor's scale is tried as well."""
    f = block_format("nvfp4")
    every = rows("nvfp4")
    groups = [every[[index]] for index in range(len(every))] + [every[:30], every[60:100] * 2.0**-30]
    for x in groups:
        amax = x.abs().amax().item()
        if not 2.0**-100 < amax < 2.0**100:  # beyond, the bounds of the scale act
            continue
        expected = [
            [
                value
                for start in range(0, len(row), f.block)
                for value in exact_nvfp4(row[start : start + f.block], amax, f.element, f.scale_format)
            ]
            for row in x.tolist()
        ]
        assert_same(quantize(x, f), torch.tensor(expected), x)


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_codes_hold_what_quantize_returns(name: str) -> None:
    x = torch.nan_to_num(rows(name), nan=1.0)
    x = x[(x.abs().amax(dim=1) < 1e30) & (x.abs().amax(dim=1) > 1e-30)]
    for axis in (-1, 0):
        scale, block = block_scale(x, block_format(name), axis=axis)
        expected = quantize(x, block_format(name).element, scale=scale, block=block)
        assert_same(decode_blocks(encode_blocks(x, name, axis=axis), name), expected, x)


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_blocks_along_the_other_dimension_are_those_of_the_transpose(name: str) -> None:
    f, x = block_format(name), rows(name)[:61]
    scale, block = block_scale(x, f, axis=0)
    across, other = block_scale(x.t().contiguous(), f)
    assert block == other[::-1]
    assert_same(scale, across.t(), scale)
    got, _ = cast(x, f.element, scale=scale, block=block)
    assert_same(got, cast(x.t().contiguous(), f.element, scale=across, block=other)[0].t(), x)


# --------------------------------------------------------------------------------------------------------- oracles


GFLOAT = {
    "mxfp8_e4m3": gfloat.formats.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": gfloat.formats.format_info_mxfp8_e5m2,
    "mxfp6_e3m2": gfloat.formats.format_info_mxfp6_e3m2,
    "mxfp6_e2m3": gfloat.formats.format_info_mxfp6_e2m3,
    "mxfp4": gfloat.formats.format_info_mxfp4_e2m1,
    "mxint8": gfloat.formats.format_info_mxint8,
}


@pytest.mark.parametrize("name", MX)
def test_floor_against_gfloat(name: str) -> None:
    """Its blocks of float64 numbers, scaled by OCP's formula; codes and back."""
    f = block_format(name)
    x = (
        torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1e-20, 0.03, 1, 7, 1e3, 1e20])[:, None]
    )
    scale, block = block_scale(x, f, mode="floor")
    theirs = [
        gfloat.quantize_block(GFLOAT[name], row.double().numpy(), gfloat.compute_scale_amax).tolist() for row in x
    ]
    assert_same(quantize(x, f.element, scale=scale, block=block), torch.tensor(theirs), x)


def torchao_cast(x: Tensor, name: str, mode: MXMode) -> tuple[Tensor, Tensor]:
    """Return torchao's scales as float32 [n, blocks], and what its codes mean."""
    pytest.importorskip("torchao", reason="torchao, a peer for MX casts, is not installed: pip install torchao")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    dtype = {
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
        "mxfp6_e3m2": DTYPE_FP6_E3M2,
        "mxfp6_e2m3": DTYPE_FP6_E2M3,
        "mxfp4": torch.float4_e2m1fn_x2,
    }[name]
    scale, data = to_mx(x, dtype, 32, ScaleCalculationMode[mode.upper()])
    return scale.float(), to_dtype(data, scale, dtype, 32, torch.float32)


@pytest.mark.filterwarnings("default")  # torchao warns while it is imported
@pytest.mark.parametrize("mode", MX_MODES)
@pytest.mark.parametrize("name", MX[:-1])
def test_mx_against_torchao(name: str, mode: MXMode) -> None:
    """Scales and values of blocks that have finite numbers, not all zero, well above float32's subnormals."""
    f = block_format(name)
    x = torch.cat([rows(name)[:, :96], torch.randn(400, 96, generator=torch.Generator().manual_seed(9)) * 3.0])
    amax = x.unflatten(1, (3, 32)).abs().amax(dim=2)
    x = x[(torch.isfinite(amax) & (amax > 2.0**-100)).all(dim=1)]
    scale, block = block_scale(x, f, mode=mode)
    their_scale, theirs = torchao_cast(x, name, mode)
    ours = quantize(x, f.element, scale=scale, block=block)
    if mode == "rceil":
        # Its quotient and its logarithm are float32 numbers: within 2^-17 above a power of two they round down to it,
        # and the largest elements of the block are clamped. The smallest scale that clamps nothing is twice that.
        off = scale != their_scale
        share = (x.unflatten(1, (3, 32)).abs().amax(dim=2).double() / f.max_finite).log2()
        assert torch.equal(scale[off], 2 * their_scale[off])
        assert ((share - share.floor())[off] < 2.0**-17).all()
        keep = ~off.any(dim=1)
        assert keep.sum() > 300
        x, scale, their_scale, ours, theirs = (t[keep] for t in (x, scale, their_scale, ours, theirs))
    assert_same(scale, their_scale, scale)
    assert_same(ours, theirs, x)


@pytest.mark.filterwarnings("default")
def test_where_torchao_goes_another_way() -> None:
    """Blocks without a finite, non-zero amax: torchao takes 2^-127 or NaN as their scale, and AltGrad 1; fp4 and fp6
    have no NaN, of which torchao makes a number, and AltGrad keeps it."""
    x = torch.zeros(3, 32)
    x[1, 3], x[2, 4] = math.nan, math.inf
    scales, values = torchao_cast(x, "mxfp4", "floor")
    assert scales[0].item() == 2.0**-127
    assert torch.isnan(scales[1]).all()
    assert block_scale(x, block_format("mxfp4"))[0].tolist() == [[1.0], [1.0], [1.0]]
    q = quantize(x, "mxfp4")
    assert torch.isnan(q).sum() == 1
    assert q[2, 4] == 6.0
    assert q[0].abs().sum() == 0
    assert not torch.equal(torch.isnan(values), torch.isnan(q))


@pytest.mark.filterwarnings("default")
def test_torchao_clamps_just_above_a_power_of_two() -> None:
    """Its rceil takes the logarithm in float32, which is 40 for the number after 2^40; the block's amax is clamped."""
    x = torch.zeros(1, 32)
    x[0, 0] = torch.nextafter(torch.tensor(6.0 * 2.0**40), torch.tensor(math.inf))
    scales, values = torchao_cast(x, "mxfp4", "rceil")
    assert scales.item() == 2.0**40
    assert values[0, 0] == 6.0 * 2.0**40
    assert block_scale(x, block_format("mxfp4"))[0].item() == 2.0**41
    assert quantize(x, "mxfp4")[0, 0] == 3.0 * 2.0**41
