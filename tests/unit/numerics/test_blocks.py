"""Block formats: scales against exact fractions and torchao, codes against ``quantize``, and every edge."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import BlockFormat, TableFormat, get_format
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.blocks import (
    MX_MODES,
    block_scale,
    decode_blocks,
    encode_blocks,
    mx_scale,
    nvfp4_scale,
    nvfp4_scales,
    top_mantissa_bits,
)
from altgrad_core.numerics.blocks_reference import float32, mx_exponent_exactly, nvfp4_scales_exactly, top_spacing
from altgrad_core.numerics.blockwise import expand
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.codes import decode
from altgrad_core.numerics.registry import format_names
from altgrad_core.plugins import installed

TAPERED = ["posit8", "takum8", "takum_linear8"]
ELEMENTS = ["e4m3fn", "e5m2", "e3m2fn", "e2m3fn", "e2m1fn", "int8", "e3m4", "e0m7", *TAPERED]
BLOCK_FORMATS = [name for name in format_names() if isinstance(get_format(name), BlockFormat)]
E2M1, E4M3 = get_format("e2m1fn"), get_format("e4m3fn")
LARGEST = torch.finfo(torch.float32).max


def block_format(name: str) -> BlockFormat:
    found = get_format(name)
    assert isinstance(found, BlockFormat)
    return found


def amaxes(largest: float) -> Tensor:
    """Magnitudes at and next to every place where a mode may change its mind, over all exponents of float32."""
    places = [1.0, 1.25, 1.5, 1.625, 1.75, 1.875, 1.9375, 1.96875, 1.984375, 1.9921875, math.frexp(largest)[0] * 2]
    exact = torch.tensor(places, dtype=torch.float64) * 2.0 ** torch.arange(-149, 128, 3).double()[:, None]
    exact = exact.float().flatten()
    around = [exact, torch.nextafter(exact, torch.tensor(0.0)), torch.nextafter(exact, torch.tensor(math.inf))]
    return torch.cat([*around, torch.tensor([0.0, 2.0**-149, LARGEST, math.inf, math.nan])])


@pytest.mark.parametrize("mode", MX_MODES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_mx_scales_are_those_of_the_definition(name: str, mode: str) -> None:
    element = get_format(name)
    amax = amaxes(element.scale_target)
    scale = mx_scale(amax, element, mode)
    assert scale.dtype is torch.float32
    expected = [2.0 ** mx_exponent_exactly(a, element, mode) for a in amax.tolist()]
    assert scale.tolist() == expected


@pytest.mark.parametrize("name", ELEMENTS)
def test_what_each_mode_promises(name: str) -> None:
    element = get_format(name)
    amax = 2.0 ** torch.linspace(-80, 80, 5001)
    floor, ceil, rceil, even = (mx_scale(amax, element, mode) for mode in ("floor", "ceil", "rceil", "even"))
    target = element.scale_target
    assert bool((amax / rceil <= target).all())
    assert bool((amax / rceil > target / 2).all())
    assert bool((amax / ceil <= target).all())
    assert bool((floor <= even).all() and (even <= ceil).all() and (rceil <= ceil).all() and (ceil <= 2 * floor).all())
    assert bool((amax / floor < 2 * 2.0 ** math.floor(math.log2(target))).all())


@pytest.mark.parametrize(
    ("amax", "floor", "even", "ceil", "rceil"),
    [
        (6.0, 1.0, 1.0, 2.0, 1.0),
        (6.5, 1.0, 1.0, 2.0, 2.0),
        (7.0, 1.0, 2.0, 2.0, 2.0),
        (8.0, 2.0, 2.0, 2.0, 2.0),
        (4.0, 1.0, 1.0, 1.0, 1.0),
        (3.0, 0.5, 0.5, 1.0, 0.5),
    ],
)
def test_the_modes_by_hand_for_fp4(amax: float, floor: float, even: float, ceil: float, rceil: float) -> None:
    scales = [mx_scale(torch.tensor(amax), E2M1, mode).item() for mode in ("floor", "even", "ceil", "rceil")]
    assert scales == [floor, even, ceil, rceil]


def test_the_largest_amax_under_each_power_of_two_not_by_logarithm() -> None:
    """float32's log2 is a whole number here, and its ceiling one too low."""
    above = torch.nextafter(torch.tensor(448.0 * 2**100), torch.tensor(math.inf))
    assert torch.ceil(torch.log2(above / 448)).item() == 100
    assert mx_scale(above, E4M3).item() == 2.0**101


@pytest.mark.parametrize("name", [*ELEMENTS, "nf4", "e5m10"])
def test_mantissa_bits_at_the_target(name: str) -> None:
    element = get_format(name)
    lowest = Fraction(2) ** (math.frexp(element.scale_target)[1] - 1)
    assert Fraction(2) ** top_mantissa_bits(element) == lowest / top_spacing(element)


def test_a_target_where_a_table_has_no_values() -> None:
    """No mantissa bits there: ``even`` takes the nearest power of two."""
    gap = TableFormat(name="gap", table=(0.0, 1.0, -1.0, 64.0), amax_target=12.0)
    assert top_mantissa_bits(gap) == 0
    assert [mx_scale(torch.tensor(x), gap, "even").item() for x in (8.0, 11.9, 12.0)] == [1.0, 1.0, 2.0]
    assert [mx_scale(torch.tensor(x), gap, "rceil").item() for x in (8.0, 12.0, 12.1)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(("name", "lost_db"), [("posit8", 0.1), ("takum8", 8.0), ("takum_linear8", 8.0)])
def test_tapered_elements_are_scaled_to_where_they_are_dense(name: str, lost_db: float) -> None:
    """Normal numbers far from 1 lose about what they lose at the best power of two, at which they would not vanish. The
    amax of 32 numbers is some two deviations, of a tensor five: takums, dense in few binades, would have it lower."""
    element = get_format(name)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)) * 2.0**-40

    def noise(y: Tensor) -> float:
        return 10 * math.log10((y - x).double().square().sum().item() / x.double().square().sum().item())

    best = min(noise(quantize(x, element, scale=2.0**exponent)) for exponent in range(-50, -30))
    for mode in MX_MODES:
        format = BlockFormat(name=f"mx_{name}", element=element, scale_format=get_format("e8m0fnu"), block=32)
        scale, block = block_scale(x, format, mode=mode)
        assert noise(quantize(x, element, scale=scale, block=block)) < best + lost_db
    two_levels = BlockFormat(name=f"nv_{name}", element=element, scale_format=E4M3, block=16, tensor_scale=True)
    assert noise(quantize(x, two_levels)) < best + lost_db
    scale, tensor_scale = nvfp4_scales(block_amax(x, (1, 16)), tensor_amax(x), element=element)
    assert scale.max() == 448.0
    assert tensor_scale == tensor_amax(x) / (448.0 * 8.0)


def test_block_scales_as_wide_as_all_scales_leave_nothing_to_a_scale_of_the_tensor() -> None:
    wide = BlockFormat(name="two", element=E2M1, scale_format=get_format("e8m0fnu"), block=16, tensor_scale=True)
    with pytest.raises(AltgradError, match=r"'e8m0fnu' spans the range of scales by itself: .* Leave tensor_scale out"):
        quantize(torch.ones(16), wide)


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(AltgradError, match="Did you mean 'rceil'"):
        mx_scale(torch.ones(1), E4M3, "rciel")


@pytest.mark.parametrize("mode", MX_MODES)
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e3m2fn", "e2m3fn", "e2m1fn"])
def test_mx_scales_of_torchao(name: str, mode: str) -> None:
    """Finite, non-zero blocks; but for rceil where its logarithm is off, next above a power of two."""
    pytest.importorskip("torchao", reason="torchao is the oracle; pip install torchao==0.18.0 --no-deps")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    element = get_format(name)
    theirs = {
        "e4m3fn": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "e3m2fn": "fp6_e3m2",
        "e2m3fn": "fp6_e2m3",
        "e2m1fn": torch.float4_e2m1fn_x2,
    }[name]
    amax = amaxes(element.max_finite)
    amax = amax[torch.isfinite(amax) & (amax > 0)]
    if mode == "rceil":
        significand = torch.frexp(amax.double() / element.max_finite)[0] * 2
        amax = amax[(significand == 1) | (significand > 1 + 1e-4)]
    x = torch.zeros(len(amax), 32)
    x[:, 5] = -amax
    codes, _ = to_mx(x, theirs, 32, ScaleCalculationMode[mode.upper()])
    mine, block = block_scale(x, block_format_of(name), mode=mode)
    assert block == (1, 32)
    assert (torch.frexp(mine[:, 0])[1] - 1 + 127).tolist() == codes.view(torch.uint8).view(-1).tolist()


def block_format_of(element: str) -> BlockFormat:
    return next(f for f in map(block_format, BLOCK_FORMATS) if f.element.name == element and not f.tensor_scale)


def test_nvfp4_scales_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for exponent in (-100.0, -20.0, 0.0, 20.0, 100.0):
        blocks = torch.rand(150, generator=generator) * 2.0**exponent
        blocks[:3] = torch.tensor([0.0, 2.0 ** (exponent - 15), 2.0**exponent])
        scale, tensor_scale = nvfp4_scales(blocks, blocks.amax())
        pairs = [nvfp4_scales_exactly(b, blocks.amax().item(), E2M1, E4M3) for b in blocks.tolist()]
        assert scale.tolist() == [block for block, _ in pairs]
        assert tensor_scale.item() == pairs[0][1]
        product = [float32(Fraction(b) * Fraction(t)) for b, t in pairs]
        assert nvfp4_scale(blocks, blocks.amax()).tolist() == product


def test_nvfp4_by_hand() -> None:
    """The largest block gets the largest e4m3fn number; a block at 2^-20 of it the smallest."""
    scale, tensor_scale = nvfp4_scales(torch.tensor([[2688.0, 6.0, 0.0, 2.0**-9]]), torch.tensor(2688.0))
    assert tensor_scale.item() == 1.0
    assert scale.tolist() == [[448.0, 1.0, 1.0, 2.0**-9]]
    scale, tensor_scale = nvfp4_scales(torch.tensor([4000.0]), torch.tensor(4000.0), power_of_two=True)
    assert tensor_scale.item() == 2.0
    assert scale.tolist() == [320.0]  # 4000 / 6 / 2 = 333.3; e4m3fn has steps of 32 there


def test_nvfp4_of_torchao() -> None:
    """Blocks that torchao does not clamp: its smallest block scale is 2^-6, and it takes reciprocals in two steps."""
    pytest.importorskip("torchao", reason="torchao is the oracle; pip install torchao==0.18.0 --no-deps")
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(0, 8)[:, None].repeat(
        8, 1
    )
    theirs, _ = nvfp4_quantize(x, 16, per_tensor_amax_to_scale(x.abs().max()))
    mine, tensor_scale = nvfp4_scales(block_amax(x, (1, 16)), tensor_amax(x))
    assert torch.equal(mine, theirs.float().view(64, 16))
    assert tensor_scale == per_tensor_amax_to_scale(x.abs().max())


@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-126, 2.0**-100, 1.0, LARGEST])
@pytest.mark.parametrize("share", [0.0, 2.0**-20, 1.0])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_nvfp4_scales_and_their_inverses_are_normal_numbers(amax: float, share: float, power_of_two: bool) -> None:
    largest = torch.tensor(amax)
    block, tensor = nvfp4_scales(largest * share, largest, power_of_two=power_of_two)
    for scale in (tensor, block * tensor):
        assert 2.0**-126 <= scale.item() <= 2.0**126
    assert 2.0**-9 <= block.item() <= 448


@pytest.mark.parametrize("amax", [0.0, math.inf, math.nan])
def test_no_scale_can_be_made_of_these(amax: float) -> None:
    for mode in MX_MODES:
        assert mx_scale(torch.tensor([amax, 448.0]), E4M3, mode).tolist()[0] == 1.0
    block, tensor = nvfp4_scales(torch.tensor([amax, 6.0]), torch.tensor(amax))
    assert tensor.item() == 1.0
    assert block.tolist() == [1.0, 1.0]


SHAPES = [(4, 64), (3, 50), (2, 3, 40), (70,), (), (0, 32), (5, 0), (2, 0, 7)]


def tensor(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-12, 12, shape, generator=generator))
    return torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, x)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_hold_what_quantize_returns(name: str, shape: tuple[int, ...]) -> None:
    x = tensor(shape)
    encoded = encode_blocks(x, name)
    assert encoded.codes.shape == x.shape
    assert (encoded.tensor_scale is None) == (name != "nvfp4")
    assert torch.equal(decode_blocks(encoded, name), quantize(x, name))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_axis_0_is_the_transposed_matrix(name: str) -> None:
    x = tensor((2, 25, 40))
    scale, block = block_scale(x, block_format(name), axis=0)
    turned, turned_block = block_scale(x.view(50, 40).t(), block_format(name), axis=-1)
    assert block == turned_block[::-1]
    assert torch.equal(scale, turned.t())
    there, here = (encode_blocks(t, name, axis=a) for t, a in ((x.view(50, 40).t(), -1), (x, 0)))
    assert torch.equal(here.codes.view(50, 40), there.codes.t())
    assert torch.equal(decode_blocks(here, name).view(50, 40), decode_blocks(there, name).t())


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_strides_and_dtypes_do_not_matter(name: str) -> None:
    x = tensor((40, 50)).bfloat16()
    fmt = block_format(name)
    expected, _ = block_scale(x.t().contiguous().float(), fmt)
    for same in (x.t(), x.t().double(), x.t()[None].expand(1, -1, -1)):
        assert torch.equal(block_scale(same, fmt)[0], expected)


def test_codes_of_scales() -> None:
    """e8m0 is the exponent plus 127; nvfp4's are e4m3fn."""
    x = torch.cat([torch.full((32,), 448.0 * 2), torch.full((32,), 2.0**-149), torch.full((1,), LARGEST)])
    assert encode_blocks(x, "mxfp8_e4m3").scale_codes.tolist() == [[128, 0, 247]]
    encoded = encode_blocks(torch.cat([torch.full((16,), 2688.0), torch.full((16,), 6.0)]), "nvfp4")
    assert decode(encoded.scale_codes, "e4m3fn").tolist() == [[448.0, 1.0]]
    assert encoded.codes.tolist() == [7] * 32


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_useless_block_leaves_the_others_alone(name: str) -> None:
    """0, Inf and NaN: scale 1 in their own block; under nvfp4 the tensor scale is 1 as well."""
    fmt = block_format(name)
    x = tensor((4, fmt.block * 3 + 5)) + 1e-3
    x[0, : fmt.block] = 0.0
    x[1, 3], x[2, fmt.block] = math.inf, math.nan
    scale, block = block_scale(x, fmt)
    assert scale[0, 0] == (1.0 if name != "nvfp4" else 1.0 * nvfp4_scales(block_amax(x, block), tensor_amax(x))[1])
    assert scale[1, 0] == scale[2, 1] == 1.0
    result = quantize(x, name)
    assert result[0, : fmt.block].eq(0).all()
    assert result[1, 3] == fmt.max_finite
    assert math.isnan(result[2, fmt.block])
    assert torch.isfinite(result).sum() == x.numel() - 1
    if name != "nvfp4":
        finite = torch.where(torch.isfinite(x), x, 0.0)
        untouched = torch.ones_like(x, dtype=torch.bool)
        untouched[1, : fmt.block] = untouched[2, fmt.block : 2 * fmt.block] = False
        assert torch.equal(result[untouched], quantize(finite, name)[untouched])


def test_nan_without_a_code_is_an_error_unless_one_is_chosen() -> None:
    x = torch.tensor([math.nan, 1.0])
    with pytest.raises(AltgradError, match="nan_code"):
        encode_blocks(x, "mxfp4")
    assert encode_blocks(x, "mxfp4", nan_code=3).codes[0] == 3


def test_a_ragged_block_is_a_block() -> None:
    x = torch.full((2, 33), 448.0)
    x[:, 32] = 1.0
    assert block_scale(x, block_format("mxfp8_e4m3"))[0].tolist() == [[1.0, 2.0**-8]] * 2


def test_only_block_formats() -> None:
    with pytest.raises(AltgradError, match="no block format"):
        encode_blocks(torch.ones(2), "e4m3fn")


def test_mx_scales_need_a_scale_format_that_holds_them() -> None:
    own = BlockFormat(name="mine", element=E2M1, scale_format=E4M3, block=16)
    with pytest.raises(AltgradError, match=r"'e4m3fn' cannot hold; give it 'e8m0fnu'"):
        quantize(torch.ones(3), own)
    mx = installed().get("scaling", "mx")
    with pytest.raises(AltgradError, match="'mine' are MX scales"):
        mx.value(mx.options(), own)
    two_levels = BlockFormat(name="mine", element=E4M3, scale_format=get_format("e5m2"), block=4, tensor_scale=True)
    x = tensor((3, 10))
    assert torch.equal(decode_blocks(encode_blocks(x, two_levels), two_levels), quantize(x, two_levels))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_tiny_and_huge_tensors(name: str) -> None:
    """Nothing overflows on the way, and the largest number keeps its place to within a step of the element format."""
    step = 2.0 ** -top_mantissa_bits(block_format(name).element)
    for size in (LARGEST, 2.0**100, 2.0**-100, 2.0**-110):
        x = torch.tensor([size, -size / 4, 0.0])
        q = quantize(x.double(), name)
        assert abs(q[0].item() / size - 1) <= step
        assert bool(torch.isfinite(q).all())
    least = quantize(torch.tensor([2.0**-149, 0.0]), name)
    assert bool(torch.isfinite(least).all())
    assert bool((least >= 0).all())


def test_expand_is_the_inverse_of_cutting() -> None:
    x = torch.ones(3, 5) * torch.tensor([1.0, 1.0, 2.0, 2.0, 4.0])
    assert torch.equal(expand(block_amax(x, (2, 2)), x.shape, (2, 2)), x)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_compiled_in_one_graph(name: str) -> None:
    torch.compiler.reset()
    fmt = block_format(name)
    modes = () if fmt.tensor_scale else MX_MODES

    def every(x: Tensor) -> list[Tensor]:
        return [quantize(x, fmt), *(block_scale(x, fmt, axis=0, mode=mode)[0] for mode in modes)]

    x = tensor((33, 50))
    compiled = torch.compile(every, fullgraph=True, dynamic=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(compiled(x), every(x), strict=True))
