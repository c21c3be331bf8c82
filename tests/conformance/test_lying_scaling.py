"""Scaling policies that lie, each caught by the check that is named for it; without its lie each is ``current``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from altgrad_core.numerics.amax import tensor_amax
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.scaling import Scale, ScalingPolicy, scale_for
from altgrad_core.plugins import installed
from altgrad_core.testing import ScalingConformance


class Honest(ScalingPolicy):
    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return scale_for(tensor_amax(x), self.format, power_of_two=True, margin=0)


class Lying(ScalingConformance):
    Policy: type[ScalingPolicy] = Honest

    def build(self, format: Format) -> ScalingPolicy:
        return self.Policy(format)


class TestHonest(Lying):
    pass


class ScaleOfAnotherShape(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis).reshape(1, 1)


class Float64(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis).double()


class WithAGradient(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis) + 0 * x.sum()


class Encodes(Honest):
    """Returns the encode scale: the inverse."""

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return 1 / super().forward(x, axis)


class Unbounded(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return (tensor_amax(x) / self.format.max_finite).float()


class ZeroStaysZero(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        amax = tensor_amax(x)
        return torch.where(amax > 0, super().forward(x, axis), 2.0**-100)


class NotAPowerOfTwo(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return scale_for(tensor_amax(x), self.format, power_of_two=False, margin=0)


class RoundsDown(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return scale_for(tensor_amax(x), self.format, power_of_two=True, margin=-1)


class AtLeastOne(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis).clamp_min(1.0)


class LooksAtItsNeighbours(ScalingPolicy):
    """The rows of ``rowwise``, with the tensor's own scale in each."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def block(self, x: Tensor, axis: int = -1) -> tuple[int, int]:
        return 1, max(x.shape[-1], 1) if x.dim() else 1

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        rows = x.numel() // max(x.shape[-1], 1) if x.dim() else 1
        return scale_for(tensor_amax(x), self.format, power_of_two=True, margin=0).expand(rows, 1)


class LooksToTheLeft(LooksAtItsNeighbours):
    """Columns of a matrix, each with a scale that is no smaller than that of the column before."""

    def block(self, x: Tensor, axis: int = -1) -> tuple[int, int]:
        return max(x.numel() // max(x.shape[-1], 1), 1) if x.dim() else 1, 1

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        columns = x.shape[-1] if x.dim() else 1
        amax = x.detach().abs().float().reshape(-1, columns).amax(0, keepdim=True).cummax(1).values
        return scale_for(amax, self.format, power_of_two=True, margin=0)


class LooksAtTheGradientMode(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis) * (1 if torch.is_grad_enabled() else 2)


class HasADirectionAfterAll(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis) * (1 if axis == -1 else 2)


class ReadsTheMemory(Honest):
    """Goes through the memory from the first element on, whatever the strides say."""

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        whole = torch.as_strided(x, (x.numel(),), (1,))
        return super().forward(whole[: 1 + x.numel() // 2], axis)


class WritesToTheTensor(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        scale = super().forward(x, axis)
        x.detach().div_(scale)
        return scale


class Draws(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        return super().forward(x, axis) * 2.0 ** torch.randint(0, 2, ())


class DrawsInVain(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        torch.rand(())
        return super().forward(x, axis)


class Remembers(Honest):
    """Grows with the largest number it has seen, which it keeps in a plain attribute."""

    def __init__(self, format: Format) -> None:
        super().__init__(format)
        self.largest = torch.zeros(())

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        self.largest = torch.maximum(self.largest, tensor_amax(x).nan_to_num(posinf=0.0))
        return scale_for(self.largest, self.format, power_of_two=True, margin=0)


class LearnsFromEvaluation(Honest):
    """The same in a buffer, in evaluation mode too."""

    largest: Tensor

    def __init__(self, format: Format) -> None:
        super().__init__(format)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        self.largest = torch.maximum(self.largest, tensor_amax(x).nan_to_num(posinf=0.0))
        return scale_for(self.largest, self.format, power_of_two=True, margin=0)


class PartsThatAreNotTheWhole(Honest):
    def shared_out(self, x: Tensor, axis: int = -1) -> Scale:
        scale = self(x)
        return Scale(scale, scale, torch.tensor(1.5))


class AFactorOfTwo(Honest):
    def shared_out(self, x: Tensor, axis: int = -1) -> Scale:
        scale = self(x)
        return Scale(scale, scale / 2, torch.tensor(2.0))


class KeepsBfloat16InWordsOnly(NotAPowerOfTwo):
    power_of_two = False

    def shared_out(self, x: Tensor, axis: int = -1) -> Scale:
        scale = self(x)
        return Scale(scale, scale, None)


class AsksTheDevice(Honest):
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        amax = tensor_amax(x)
        if not math.isfinite(amax.item()) or amax == 0:
            return torch.ones(())
        return super().forward(x, axis)


CAUGHT = [
    (ScaleOfAnotherShape, "one_scale_for_each_block", r"scales of shape \[1, 1\], not \[\]"),
    (Float64, "one_scale_for_each_block", "scales are float32, got torch.float64"),
    (WithAGradient, "one_scale_for_each_block", "scales carry a gradient"),
    (Unbounded, "positive_and_finite", "between"),
    (ZeroStaysZero, "zero_infinite_and_nan", "is 1; got"),
    (NotAPowerOfTwo, "power_of_two", "every scale is a power of two"),
    (RoundsDown, "nothing_overflows", "e4m3fn: x / scale is at most 448"),
    (Encodes, "nothing_overflows", "x / scale is at most"),
    (Encodes, "proportional", "times that of x"),
    (AtLeastOne, "proportional", "times that of x"),
    (LooksAtItsNeighbours, "a_block_by_itself", "when all others have changed"),
    (LooksToTheLeft, "a_block_by_itself", "the last block's scale when all others have changed"),
    (HasADirectionAfterAll, "axis", "is not directional, and the axis changes the scale"),
    (ReadsTheMemory, "layout_and_dtype", "strides"),
    (WritesToTheTensor, "layout_and_dtype", "written to the tensor"),
    (Draws, "same_again", "the scale of the same tensor"),
    (LooksAtTheGradientMode, "same_again", "the scale of the same tensor"),
    (DrawsInVain, "same_again", "has drawn random numbers"),
    (Remembers, "state", "the scale after a state was loaded"),
    (Remembers, "evaluation_changes_nothing", "the scale of the same tensor in evaluation mode"),
    (LearnsFromEvaluation, "evaluation_changes_nothing", "largest in evaluation mode"),
    (PartsThatAreNotTheWhole, "parts_of_a_scale", r"inside \* factor and decode"),
    (AFactorOfTwo, "parts_of_a_scale", "from 1 to below 2"),
    (KeepsBfloat16InWordsOnly, "parts_of_a_scale", "in bfloat16"),
    (AsksTheDevice, "never_waits_for_the_device", r"asks for numbers of a tensor \(item\)"),
]


@pytest.mark.parametrize(
    ("policy", "check", "said"), CAUGHT, ids=[f"{policy.__name__}-{check}" for policy, check, _ in CAUGHT]
)
def test_a_lie_is_caught(policy: type[ScalingPolicy], check: str, said: str) -> None:
    suite = type(policy.__name__, (Lying,), {"Policy": policy})()
    with pytest.raises(AssertionError, match=said):
        getattr(suite, f"test_{check}")()


def test_every_check_catches_somebody() -> None:
    checks = {name.removeprefix("test_") for name in dir(ScalingConformance) if name.startswith("test_")}
    assert checks == {check for _, check, _ in CAUGHT}


def test_every_built_in_has_its_suite() -> None:
    import test_scaling

    suites = [value for value in vars(test_scaling).values() if isinstance(value, type)]
    assert {suite.kind for suite in suites} - {""} == set(installed().names("scaling"))
