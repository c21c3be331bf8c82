"""Tensors to measure formats on: samples of standard distributions, and tensors from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from altgrad_core.errors import AltgradError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAMPLES = 1 << 20
"""The size of a 1024 x 1024 matrix. With heavy tails the largest sample, and so the scale, grows with the number."""
COLUMNS = 1024
"""Blocks lie along rows of this length."""
_NAMED = 12  # tensors of a file that an error names
_NEEDED = "a tensor of floating-point numbers of at most 64 bits, one or more, is needed"
_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Signal:
    """A tensor with a name."""

    name: str
    """What a table calls it."""
    meaning: str
    """What it is, in a few words."""
    values: Tensor
    """float32, two-dimensional where blocks should lie along rows."""


def _normal(size: int, generator: torch.Generator) -> Tensor:
    import torch

    return torch.randn(size, generator=generator)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    import torch

    return torch.rand(size, generator=generator) * 2 - 1


def _laplace(size: int, generator: torch.Generator) -> Tensor:
    import torch

    sign = torch.sign(_uniform(size, generator))
    return sign * -torch.log1p(-torch.rand(size, generator=generator))


def _student(size: int, generator: torch.Generator) -> Tensor:
    import torch

    # A normal number over the root mean square of three others.
    normal = torch.randn(4, size, generator=generator)
    return normal[0] / normal[1:].square().mean(dim=0).sqrt()


def _lognormal(size: int, generator: torch.Generator) -> Tensor:
    import torch

    sign = torch.sign(_uniform(size, generator))
    return sign * torch.exp(2 * torch.randn(size, generator=generator))


DISTRIBUTIONS: dict[str, tuple[str, Callable[[int, torch.Generator], Tensor]]] = {
    "normal": ("standard deviation 1", _normal),
    "Laplace": ("density exp(-|x|)/2", _laplace),
    "uniform": ("from -1 to 1", _uniform),
    "Student t": ("3 degrees of freedom: heavy tails, as of activations with outliers", _student),
    "log-normal": ("random sign, log of the magnitude normal with deviation 2: as of gradients", _lognormal),
}


def distributions(samples: int = SAMPLES, seed: int = 0) -> list[Signal]:
    """Draw ``samples`` numbers of each distribution, in rows of 1024; each from its own generator with the same seed."""
    import torch

    if samples < COLUMNS:
        raise AltgradError(f"--samples is {COLUMNS} or more, got {samples}.")
    if not -(2**63) <= seed < 2**64:
        raise AltgradError(f"--seed is an integer of 64 bits, got {seed}.")
    found = []
    for name, (meaning, draw) in DISTRIBUTIONS.items():
        values = draw(samples // COLUMNS * COLUMNS, torch.Generator().manual_seed(seed))
        found.append(Signal(name=name, meaning=meaning, values=values.reshape(-1, COLUMNS)))
    return found


def from_file(where: str) -> Signal:
    """Read ``FILE`` or ``FILE:TENSOR``: .safetensors, .npy, or .pt / .pth / .bin without unpickling any code.

    The tensor becomes float32; NaN, Inf and what float32 cannot hold become 0, which the meaning states. Raises
    ``AltgradError`` for a file that is not there or not readable, for a name that is not in it (or is needed), and for a
    tensor that holds no numbers.
    """
    import torch

    path, name = _split(where)
    tensors = _tensors(path)
    if not tensors:
        raise AltgradError(f"{path} holds no tensor.")
    if name is None and len(tensors) == 1:
        (name,) = tensors
    if name is None or name not in tensors:
        listed = ", ".join(sorted(tensors)[:_NAMED]) + (", ..." if len(tensors) > _NAMED else "")
        lead = f"{path} has no tensor '{name}'.{nearest(name, tensors)}" if name else f"Say which tensor of {path}."
        raise AltgradError(f"{lead} It holds {len(tensors)}: {listed}. Write {path}:NAME.")
    tensor = _read(tensors[name], f"{path}: '{name}' cannot be read")
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise AltgradError(
            f"{path}: '{name}' has dtype {str(tensor.dtype).removeprefix('torch.')} and shape {list(tensor.shape)}; "
            f"{_NEEDED}."
        )
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        kind = "meta" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
        raise AltgradError(f"{path}: '{name}' is a {kind} tensor; one with all its elements in the file is needed.")
    values = tensor.detach().float()
    finite = torch.isfinite(values)
    lost = int((~finite).sum())
    note = f"; {lost:,} that are NaN, Inf or beyond float32 count as 0" if lost else ""
    shape = " x ".join(str(size) for size in tensor.shape) or "a number"
    return Signal(
        name=name.rpartition("/")[2],
        meaning=f"{path}, {shape}, {str(tensor.dtype).removeprefix('torch.')}{note}",
        values=torch.where(finite, values, 0.0),
    )


def _split(where: str) -> tuple[Path, str | None]:
    path, colon, name = where.rpartition(":")
    try:
        if Path(where).exists():
            return Path(where), None
        if colon and Path(path).exists():
            return Path(path), name
    except OSError as error:  # a folder that may not be read, a name too long
        raise AltgradError(f"--tensor: {where} cannot be read: {error.strerror}.") from None
    raise AltgradError(f"--tensor: there is no file {path if colon else where}. Write FILE, or FILE:TENSOR.")


def _tensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    """Return name -> a function that reads the tensor, so that one tensor of a large file costs no more than itself."""
    readers: Mapping[str, Callable[[Path], dict[str, Callable[[], Tensor]]]] = {
        ".safetensors": _safetensors,
        ".npy": _numpy,
        ".pt": _torch,
        ".pth": _torch,
        ".bin": _torch,
    }
    if path.suffix not in readers or path.is_dir():
        raise AltgradError(f"--tensor reads {', '.join(readers)} files, got {path}.")
    return _read(partial(readers[path.suffix], path), f"{path} cannot be read as {path.suffix}")


def _read(read: Callable[[], _T], failure: str) -> _T:
    """Return what ``read`` returns; an ``AltgradError`` that begins with ``failure`` for what it raises."""
    try:
        return read()
    except AltgradError:
        raise
    except Exception as error:  # each library has its own errors for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AltgradError(f"{failure}: {reason}") from None


def _safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    from safetensors import safe_open

    opened: Any = safe_open(path, framework="pt")
    return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118


def _numpy(path: Path) -> dict[str, Callable[[], Tensor]]:
    import numpy as np
    import torch

    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise AltgradError(f"{path} is an archive of arrays (.npz); save the one you mean with numpy.save.")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:  # torch has no types for most of the others
        raise AltgradError(f"{path} has dtype {array.dtype} and shape {list(array.shape)}; {_NEEDED}.")
    native = array.dtype.newbyteorder("=")
    return {path.stem: lambda: torch.from_numpy(np.asarray(array, dtype=native, order="C"))}


def _torch(path: Path) -> dict[str, Callable[[], Tensor]]:
    import torch

    return _flat(torch.load(path, map_location="cpu", weights_only=True), path.stem)


def _flat(value: Any, name: str, above: str = "") -> dict[str, Callable[[], Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        return {above or name: lambda: value}
    found = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            found.update(_flat(inner, name, f"{above}.{key}" if above else str(key)))
    return found
