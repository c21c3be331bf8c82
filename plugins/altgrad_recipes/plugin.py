"""Registers named recipes. Any format name is a recipe besides, all operands in it: ``e5m2``, ``mxfp4``, ``nvfp4``."""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterRecipe, hookimpl


@hookimpl
def altgrad_register_recipes(register: RegisterRecipe) -> None:
    """Register them."""
    # What most people train in: BF16 autocast over FP32 weights. No operand is cast, so nothing is emulated.
    register("bf16", {"compute": "bf16"})
    # The reference: FP32 all through.
    register("fp32", {"compute": "fp32"})
    # The usual FP8 recipe (Micikevicius et al. 2022, section 3.1): precision forward, range backward.
    register("hybrid", {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"})
    # E4M3 for gradients as well, since blocks give the range, and scales rounded up (arXiv 2506.08027).
    register("mxfp8", {"base": "mxfp8_e4m3"})
    # Of the two 6-bit elements the one with more range, for all operands (arXiv 2310.10537).
    register("mxfp6", {"base": "mxfp6_e3m2"})
    # Blocks of 1 x 128 for activations and gradients, 128 x 128 for weights (DeepSeek-V3, arXiv 2412.19437, 3.3), with
    # scales that are powers of two, where the paper has FP32 ones for weights.
    by_rows = {"format": "e4m3fn", "scaling": {"kind": "blockwise", "rows": 1, "columns": 128}}
    squares = {"format": "e4m3fn", "scaling": {"kind": "blockwise", "rows": 128, "columns": 128}}
    register("deepseek-v3", {"input": by_rows, "weight": squares, "grad_output": by_rows})
    # Nothing of a matrix in more than 8 bits (and the scales): no master copy, so updates are rounded stochastically,
    # and so are the optimizer's moments, whose slow decay rounding to nearest would stop.
    stochastic = {"format": "e5m2", "rounding": "stochastic"}
    register(
        "e5m2-pure",
        {
            "base": "e5m2",
            "gradient": "e5m2",
            "weight_storage": stochastic,
            "optimizer_state": {**stochastic, "format": "mxfp8_e5m2"},
            "saved_activations": "e5m2",
        },
    )
