"""``altgrad bench layer``: a forward and backward pass of one linear layer, in BF16, in AltGrad's ways and the peers'."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from altgrad_core.bench.timing import interleaved, median, ratio
from altgrad_core.bench.variants import Variant, problem, quiet
from altgrad_core.bench.verify_native import Shape


def bench_layer(shape: Shape, chosen: dict[str, Variant], device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Return variant -> milliseconds and the ratio to BF16's for a layer of this shape, BF16 activations, FP32 weights."""
    torch.manual_seed(0)
    x = torch.randn(shape.m, shape.k, device=device, dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn(shape.m, shape.n, device=device, dtype=torch.bfloat16)
    runs, absent = {}, {}
    for name, variant in chosen.items():
        try:
            layer = variant.apply(nn.Linear(shape.k, shape.n, device=device))
            run = functools.partial(_pass, layer, x, g)
            with quiet():
                run()
        except Exception as error:  # a peer that is not there, or a way that this machine does not have
            absent[name] = problem(error)
            continue
        runs[name] = run
    times = interleaved(runs, device, rounds=rounds)
    work = 6 * shape.m * shape.k * shape.n
    rows = {
        name: {
            "ms": round(median(times, name), 4),
            "tflop_per_s": float(f"{work / median(times, name) / 1e9:.4g}"),
            "to_base": round(ratio(times, name, "bf16"), 3),
        }
        for name in times
    }
    return {"what": f"layer {shape}, forward and backward", "base": "bf16", "rows": rows, "absent": absent}


def _pass(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = layer(x)
    y.backward(g.to(y.dtype))
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None
