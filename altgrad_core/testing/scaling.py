"""``ScalingConformance``: what a cast expects of a scaling policy, as a class of pytest tests to subclass."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from altgrad_core.numerics.blockwise import block_counts, expand
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.scaling import ScalingPolicy, usable
from altgrad_core.plugins import installed
from altgrad_core.testing.counting import CountedSuite

CLAUSES = {
    "edges": "a tensor, or a block, whose largest magnitude is 0, Inf or NaN has scale 1",
    "fits": "no element of the tensor that a scale is chosen for lies beyond the format's largest value",
    "proportional": "a tensor that is a power of two times as large has a scale that is as much larger",
    "local": "the scale of a block depends on nothing outside it",
}
"""What ``cannot`` may switch off; everything else holds for every policy."""

_SHAPES = ((), (1,), (300,), (1, 1), (40, 70), (3, 130), (260, 140), (2, 3, 33), (0,), (0, 5), (5, 0), (2, 0, 3))
# Scales stay where they and their inverses are float32 numbers.
_LEAST, _LARGEST = 2.0**-127, 2.0**127


class ScalingConformance(CountedSuite):
    """Subclass it, say which policy, and pytest finds the tests."""

    clauses: ClassVar[Mapping[str, str]] = CLAUSES
    kind: ClassVar[str] = ""
    """The name under which a plugin registers the policy, as in ``scaling = { kind = "..." }``."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options, as in ``experiments.toml``."""
    formats: ClassVar[tuple[str, ...]] = ("e4m3fn", "e5m2")
    """Formats that scales are made for."""

    @classmethod
    def _look_up(cls) -> None:
        if cls.kind:
            installed().get("scaling", cls.kind)

    def build(self, format: Format) -> ScalingPolicy:
        """Return the policy; override it for one that no plugin registers."""
        extension = installed().get("scaling", self.kind)
        policy: ScalingPolicy = extension.value(extension.options(**self.options), format)
        return policy

    def test_one_scale_for_each_block(self) -> None:
        """Whatever the shape: float32, 0-d or [nr, nc] as ``block`` says, on the tensor's device, without a gradient."""
        for policy, x, axis in self._each(self._shapes()):
            block, scale = policy.block(x, axis), policy(x.requires_grad_(), axis)
            expected = () if block is None else block_counts(x.shape, block)
            said = f"shape {list(x.shape)}, axis {axis}, block {block}"
            assert tuple(scale.shape) == expected, f"{said}: scales of shape {list(scale.shape)}, not {list(expected)}"
            assert scale.dtype is torch.float32, f"{said}: scales are float32, got {scale.dtype}"
            assert scale.device == x.device, f"{said}: scales on {scale.device}"
            assert not scale.requires_grad, f"{said}: scales carry a gradient"
            self.count += 1

    def test_positive_and_finite(self) -> None:
        """From 2^-127 to 2^127, however large, small or strange the numbers are."""
        for policy, x, axis in self._each(itertools.chain(self._sizes(), self._strange())):
            scale = policy(x, axis)
            self._holds((scale >= _LEAST) & (scale <= _LARGEST), "a scale lies between 2^-127 and 2^127", scale)

    def test_zero_infinite_and_nan(self) -> None:
        """What no scale can be made of has scale 1."""
        self.needs("edges")
        for policy, x, axis in self._each(self._strange()):
            block, scale = policy.block(x, axis), policy(x, axis)
            amax = _amax(x, block or (max(x.shape[0], 1), x.shape[1])).reshape(scale.shape) if x.numel() else scale * 0
            self._holds((scale == 1) | usable(amax), "the scale of nothing but zeros, of Inf and of NaN is 1", scale)

    def test_power_of_two(self) -> None:
        """A policy that says so has no other scales."""
        for policy, x, axis in self._each(itertools.chain(self._sizes(), self._shapes())):
            scale = policy(x, axis)
            if policy.power_of_two:
                self._holds(torch.frexp(scale)[0] == 0.5, "every scale is a power of two", scale)
            self.count += 1

    def test_nothing_overflows(self) -> None:
        """The largest element, divided by its scale, is at most the format's largest value."""
        self.needs("fits")
        for name in self.formats:
            for policy, x, axis in self._each(self._sizes(), name):
                block, scale = policy.block(x, axis), policy(x, axis)
                whole = scale if block is None else expand(scale, x.shape, block)
                largest = get_format(name).max_finite * (1 + 2.0**-22)  # of a scale that float32 rounded
                ratio = x.abs().double() / whole.double()
                fits = (ratio <= largest) | (whole >= _LARGEST / 2)
                self._holds(fits, f"{name}: x / scale is at most {largest:.6g}", ratio)

    def test_proportional(self) -> None:
        """2^k * x has the scale 2^k * scale."""
        self.needs("proportional")
        for exponent in (-20, -1, 3, 17):
            for policy, x, axis in self._each([self._random((40, 70)), self._random((3, 130))]):
                other = copy.deepcopy(policy)
                scale, turned = policy(x, axis), other(x * 2.0**exponent, axis)
                self._same(
                    turned, scale * 2.0**exponent, f"the scale of 2^{exponent} x is 2^{exponent} times that of x"
                )

    def test_a_block_by_itself(self) -> None:
        """What lies in other blocks does not matter, before it or after it."""
        self.needs("local")
        for policy, x, axis in self._each([self._random((260, 140))]):
            block = policy.block(x, axis)
            if block is None:
                self.switch_off("one scale for the tensor")
            scale, other = policy(x, axis), copy.deepcopy(policy)
            for place, row, column in (("first", 0, 0), ("last", -1, -1)):
                marked = torch.zeros_like(scale)
                marked[row, column] = 1
                changed = torch.where(expand(marked, x.shape, block) == 1, x, x * 1000)
                after = copy.deepcopy(other)(changed, axis)[row, column]
                self._same(after, scale[row, column], f"the {place} block's scale when all others have changed")

    def test_axis(self) -> None:
        """Across the rows of a matrix is along the columns of its transpose; a policy without direction has no axis."""
        for policy, x, _ in self._each([self._random((260, 140)), self._random((3, 130))]):
            other = copy.deepcopy(policy)
            if policy.directional:
                along, across = policy(x, -1), other(x.t().contiguous(), 0)
                self._same(across.t(), along, "scales along the rows, and along the columns of the transpose")
            else:
                self._same(other(x, 0), policy(x, -1), "the policy is not directional, and the axis changes the scale")

    def test_layout_and_dtype(self) -> None:
        """The numbers matter, not how they lie in memory, nor the dtype that holds them; the tensor stays as it was."""
        for policy, x, axis in self._each([self._random((40, 70)).bfloat16().float()]):
            scale = copy.deepcopy(policy)(x.clone(), axis)
            ways = (
                x.t().contiguous().t(), torch.stack([x, x], dim=-1)[..., 0], torch.cat([x, x])[:40],
                x.bfloat16(), x.double(), x.view(4, 10, 70),
            )  # fmt: skip
            for way in ways:
                before = way.clone()
                self._same(copy.deepcopy(policy)(way, axis), scale, f"strides {way.stride()}, {way.dtype}")
                assert torch.equal(way, before), "the policy has written to the tensor"

    def test_same_again(self) -> None:
        """Two policies that have seen the same give the same scales, with or without gradients, and draw no random numbers."""
        generator = torch.random.get_rng_state()
        for (one, x, axis), (other, y, _) in zip(self._each(self._course()), self._each(self._course()), strict=True):
            with torch.no_grad():
                again = other(y, axis)
            self._same(one(x, axis), again, "the scale of the same tensor")
        assert torch.equal(torch.random.get_rng_state(), generator), "the policy has drawn random numbers"

    def test_state(self) -> None:
        """All that a policy remembers is in ``state_dict``; one that gets it goes on as the one that gave it."""
        for name in self.formats:
            policy = self.build(get_format(name))
            for x in self._course():
                saved = {key: value.clone() for key, value in policy.state_dict().items()}
                again = self.build(get_format(name))
                again.load_state_dict(saved)
                self._same(again(x), policy(x), "the scale after a state was loaded")
                for key, value in policy.state_dict().items():
                    self._same(again.state_dict()[key], value, f"{key} after the next tensor")

    def test_evaluation_changes_nothing(self) -> None:
        """In evaluation mode a policy remembers nothing."""
        for name in self.formats:
            policy = self.build(get_format(name))
            policy(self._random((4, 5)))
            policy.eval()
            before = {key: value.clone() for key, value in policy.state_dict().items()}
            scale = policy(self._random((40, 70)))
            for x in self._course():
                policy(x)
            for key, value in policy.state_dict().items():
                self._same(value, before[key], f"{key} in evaluation mode")
            self._same(policy(self._random((40, 70))), scale, "the scale of the same tensor in evaluation mode")

    def test_parts_of_a_scale(self) -> None:
        """``shared_out`` gives the same scale in two parts, that of the product from 1 to below 2, and keeps to bfloat16."""
        for name in self.formats:
            format = get_format(name)
            values = torch.tensor([value for value in format.values() if math.isfinite(value)])
            for policy, x, axis in self._each(itertools.chain(self._sizes(), self._shapes()), name):
                scale = copy.deepcopy(policy)(x.clone(), axis)
                decode, inside, factor = policy.shared_out(x, axis)
                self._same(decode, scale, "shared_out().decode and the scale itself")
                assert inside.shape == scale.shape, f"inside has shape {list(inside.shape)}"
                if factor is not None:
                    assert factor.dim() == 0, f"the factor is 0-d, got shape {list(factor.shape)}"
                    self._holds((factor >= 1) & (factor < 2), "a factor lies from 1 to below 2", factor)
                self._same(inside * (1 if factor is None else factor), decode, "inside * factor and decode")
                ordinary = inside[(inside > 2.0**-100) & (inside < 2.0**100)].reshape(-1, 1)
                if policy.keeps_bfloat16 and format.fits_bfloat16 and ordinary.numel():
                    products = ordinary[:50] * values
                    self._same(products.bfloat16().float(), products, "inside times a value, in bfloat16")

    def test_never_waits_for_the_device(self) -> None:
        """No number of a tensor is asked for (``item``, ``if``), which would make an accelerator stop."""
        for name in self.formats:
            for policy, x, axis in self._each([self._random((40, 70))], name):
                for _ in range(2):
                    with _NothingIsRead():
                        policy.shared_out(x, axis)
                    self.count += 1

    def _each(self, tensors: Any, *names: str) -> Iterator[tuple[ScalingPolicy, Tensor, int]]:
        """Yield a new policy for each tensor, and for each axis if it has a direction."""
        tensors = list(tensors)
        for name in names or self.formats:
            for x in tensors:
                policy = self.build(get_format(name))
                yield policy, x, -1
                if policy.directional:
                    yield self.build(get_format(name)), x, 0

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape) + len(shape)))

    def _shapes(self) -> Iterator[Tensor]:
        for shape in _SHAPES:
            yield self._random(shape)

    def _sizes(self) -> Iterator[Tensor]:
        """Yield tensors of every size that float32 has, of one size or of many."""
        x = self._random((20, 70))
        for exponent in (-149, -130, -126, -60, -10, 0, 1, 10, 60, 120, 125):
            yield (x * 2.0**exponent).clamp(-3e38, 3e38)
        yield x * 2.0 ** torch.arange(-35, 35)
        yield torch.full((4, 64), 448.0)
        yield torch.full((4, 64), torch.finfo(torch.float32).max)
        yield torch.full((4, 64), 2.0**-149)

    def _strange(self) -> Iterator[Tensor]:
        """Yield tensors with nothing but zeros, with Inf and NaN, all over and in one place."""
        for value in (0.0, -0.0, math.inf, -math.inf, math.nan):
            yield torch.full((3, 70), value)
            x = self._random((130, 140))
            x[0, 0] = value
            x[:, 64:] = value
            yield x
        yield torch.empty(0, 4)

    def _course(self) -> list[Tensor]:
        """Return tensors as a training shows them: larger, smaller, an empty one and one gone wrong among them."""
        sizes = (1.0, 4.0, 0.01, 0.0, 300.0, math.nan, 7.0, 7.0, math.inf, 1e-6, 2.0)
        return [self._random((8, 40)) * size for size in sizes] + [torch.empty(0, 40), self._random((8, 40))]

    def _holds(self, law: Tensor, what: str, came: Tensor) -> None:
        assert law.all(), f"{what}; got {came[~law].flatten()[:5].tolist()}"
        self.count += law.numel()

    def _same(self, got: Tensor, expected: Tensor, what: str) -> None:
        assert got.shape == expected.shape, f"{what}: shapes {list(got.shape)} and {list(expected.shape)}"
        same = got == expected
        assert same.all(), f"{what}: {got[~same].flatten()[:5].tolist()} and {expected[~same].flatten()[:5].tolist()}"
        self.count += 1


class _NothingIsRead(TorchFunctionMode):
    """Fails where a number of a tensor, or a shape that depends on the numbers, is asked for."""

    READS = frozenset(
        {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__contains__", "equal", "allclose",
         "nonzero", "argwhere", "masked_select", "unique", "cpu"}
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in self.READS, f"the policy asks for numbers of a tensor ({name}): an accelerator would stop"
        return func(*args, **(kwargs or {}))


def _amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the largest magnitude of each block, Inf where there is a NaN, by looking at one block after the other."""
    rows = torch.split(x.abs().nan_to_num(nan=math.inf), block[0], dim=0)
    return torch.stack([torch.stack([part.amax() for part in torch.split(row, block[1], dim=1)]) for row in rows])
