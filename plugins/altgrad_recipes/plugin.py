"""Registers the recipes ``bf16``, ``fp32`` and ``hybrid``; any format name is a recipe too (all operands in it)."""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterRecipe, hookimpl


@hookimpl
def altgrad_register_recipes(register: RegisterRecipe) -> None:
    """Register the three."""
    # What most people train in: BF16 autocast over FP32 weights. No operand is cast, so nothing is emulated.
    register("bf16", {"compute": "bf16"})
    # The reference: FP32 all through.
    register("fp32", {"compute": "fp32"})
    # The usual FP8 recipe (Micikevicius et al. 2022, section 3.1): precision forward, range backward.
    register("hybrid", {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"})
