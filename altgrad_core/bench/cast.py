"""``altgrad bench cast``: casts of a tensor to FP8 codes and to values, beside a copy and the peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad_core.bench.timing import interleaved, median, ratio
from altgrad_core.bench.variants import problem, quiet
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.stored import cast_stored
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.resolve import resolve_recipe


def bench_cast(shape: tuple[int, int], device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Return name -> milliseconds, GB/s and the ratio to a copy, of casts of a BF16 matrix of this shape."""
    torch.manual_seed(0)
    x = torch.randn(*shape, device=device, dtype=torch.bfloat16)
    runs, absent = {}, {}
    for name, make in _contenders(x).items():
        try:
            with quiet():
                run = make()
                run()
        except Exception as error:  # a peer that is not there, or does not run here
            absent[name] = problem(error)
            continue
        runs[name] = run
    times = interleaved(runs, device, rounds=rounds)
    rows = {
        name: {
            "ms": round(median(times, name), 4),
            "gelem_per_s": round(x.numel() / median(times, name) / 1e6, 3),
            "to_base": round(ratio(times, name, "copy"), 3),
        }
        for name in times
    }
    return {"what": f"cast of {shape[0]} x {shape[1]} BF16", "base": "copy", "rows": rows, "absent": absent}


def _contenders(x: Tensor) -> dict[str, Callable[[], Callable[[], object]]]:
    e4m3fn, scale = get_format("e4m3fn"), torch.tensor(0.25, device=x.device)

    def quantizer(scaling: str, dtype: torch.dtype, statistics: bool = False) -> Callable[[], object]:
        how = resolve_recipe({"base": "e4m3fn", "scaling": scaling}).input
        assert how is not None
        made = Quantizer(how).to(x.device)
        return lambda: made(x, dtype=dtype, statistics=statistics)

    def torchao() -> Callable[[], object]:
        from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
        from torchao.float8.float8_training_tensor import LinearMMConfig

        return lambda: hp_tensor_to_float8_dynamic(x, torch.float8_e4m3fn, LinearMMConfig())

    codes, values = torch.float8_e4m3fn, torch.bfloat16
    return {
        "copy": lambda: x.clone,
        "torch clamp and to e4m3fn": lambda: lambda: x.clamp(-448, 448).to(codes),
        "altgrad to values": lambda: lambda: cast(x, e4m3fn, scale=scale),
        "altgrad to values, statistics": lambda: lambda: cast(x, e4m3fn, scale=scale, statistics=True),
        "altgrad to codes": lambda: lambda: cast_stored(x, e4m3fn, scale=scale),
        "altgrad current, to values": lambda: quantizer("current", values),
        "altgrad current, to codes": lambda: quantizer("current", codes),
        "altgrad delayed, to codes": lambda: quantizer("delayed", codes),
        "altgrad rowwise, to codes": lambda: quantizer("rowwise", codes),
        "torchao current, to codes": torchao,
    }
