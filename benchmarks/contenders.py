"""Who casts what in ``benchmarks/quantize.py``: AltGrad in several ways, and every peer that is installed.

Every contender takes the same tensor and returns a new one of the same dtype, whose memory comes from the same
allocator.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Callable

import attrs
import gfloat
import gfloat.formats
import ml_dtypes
import torch
from torch import Tensor

from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.stochastic import Draw

# Beyond this size a call of the slowest peers takes seconds.
SLOW_LIMIT = 2**20
# One of each way to round (a sum, the bits, lifted or float64), of signed, unsigned and both ends of the splits.
FORMATS = [
    *("e4m3fn", "e5m2", "e3m2fn", "e2m1fn", "e7m0f", "e0m7f", "e4m3fnuz", "binary8p4se", "binary8p4ue"),
    *("fp16", "bf16", "tf32", "e8m3", "e8m3fnuz", "e5m22"),
]
TABLES = ["posit8", "takum8", "nf4"]


@attrs.frozen(kw_only=True)
class Contender:
    """One way to cast."""

    name: str
    """As printed."""
    run: Callable[[], object]
    """Casts the tensor it was made for."""
    kernel: str = ""
    """AltGrad's kernel that it wants: ``native``, ``torch`` or, for a peer, none."""
    arbitrary: bool = False
    """Whether a peer takes any number of exponent and mantissa bits."""


def altgrad(x: Tensor, native: bool) -> list[Contender]:
    """AltGrad's: the default way (with the native kernel where there is one), and tensor operations."""
    found = []
    dtype, formats = x.dtype, {name: get_format(name) for name in (*FORMATS, *TABLES)}
    draw, scale, e4m3fn = Draw(seed=1, name="x"), torch.tensor(0.25), formats["e4m3fn"]
    short = x.view(-1)[: x.numel() // 24 * 24].view(-1, 24)
    of_rows, of_blocks = torch.full((len(short), 1), 0.25), torch.full((len(x), x.shape[-1] // 32), 0.25)
    for kernel in ("native", "torch") if native else ("torch",):

        def add(name: str, run: Callable[[], object], kernel: str = kernel) -> None:
            found.append(Contender(name=f"altgrad {kernel} {name}", run=run, kernel=kernel))

        for name, format in formats.items():
            if dtype is torch.float32 or format.fits_bfloat16:
                add(name, lambda format=format: cast(x, format, dtype=dtype))
        add("e4m3fn scaled", lambda: cast(x, e4m3fn, scale=scale, dtype=dtype))
        add("e4m3fn statistics", lambda: cast(x, e4m3fn, dtype=dtype, statistics=True))
        add("e4m3fn scaled statistics", lambda: cast(x, e4m3fn, scale=scale, dtype=dtype, statistics=True))
        add("e4m3fn stochastic", lambda: cast(x, e4m3fn, dtype=dtype, rounding="stochastic", draw=draw))
        add("e4m3fn up", lambda: cast(x, e4m3fn, dtype=dtype, rounding="up"))
        add("e4m3fn saturation none", lambda: cast(x, e4m3fn, dtype=dtype, saturation="none"))
        add("e4m3fn in rows of 24", lambda: cast(short, e4m3fn, scale=of_rows, block=(1, 24), dtype=dtype))
        add("e4m3fn in blocks of 32", lambda: cast(x, e4m3fn, scale=of_blocks, block=(1, 32), dtype=dtype))
        for name in ("mxfp8_e4m3", "mxfp4", "nvfp4"):
            add(name, lambda name=name: quantize(x, name))
    if dtype is torch.float32:
        found.append(
            Contender(name="altgrad native e4m3fn to bfloat16", run=lambda: cast(x, e4m3fn), kernel="native")
            if native
            else Contender(name="altgrad torch e4m3fn to bfloat16", run=lambda: cast(x, e4m3fn), kernel="torch")
        )
    return found


def altgrad_compiled(x: Tensor) -> list[Contender]:
    """AltGrad's casts through torch.compile."""
    dtype, e4m3fn, draw = x.dtype, get_format("e4m3fn"), Draw(seed=1, name="x")
    found = []
    for name, options in (("e4m3fn", {}), ("e4m3fn stochastic", {"rounding": "stochastic", "draw": draw})):
        run = torch.compile(
            lambda t, options=options: cast(t, e4m3fn, dtype=dtype, **options)[0], fullgraph=True, dynamic=True
        )
        found.append(Contender(name=f"altgrad compiled {name}", run=lambda run=run: run(x)))
    return found


def torch_casts(x: Tensor) -> list[Contender]:
    """A copy, and torch's own casts, clamped first as saturation asks."""
    dtype = x.dtype

    def there_and_back(name: str, largest: float) -> Callable[[], object]:
        to = getattr(torch, name)
        return lambda: x.clamp(-largest, largest).to(to).to(dtype)

    found = [
        Contender(name="clone", run=x.clone),
        Contender(name="torch e4m3fn", run=there_and_back("float8_e4m3fn", 448.0)),
        Contender(name="torch e5m2", run=there_and_back("float8_e5m2", 57344.0)),
    ]
    if dtype is torch.float32:
        found.append(Contender(name="torch bf16", run=lambda: x.bfloat16().float()))
    return found


def peers(x: Tensor) -> tuple[list[Contender], dict[str, str]]:
    """The peers that are installed, and of all of them the version, or why there is none."""
    found: list[Contender] = []
    state: dict[str, str] = {}
    for name, make in PEERS.items():
        made, problem = that_run(make, x)
        state[name] = problem or _version(name)
        found += made
    return found, state


def that_run(make: Callable[[Tensor], list[Contender]], x: Tensor) -> tuple[list[Contender], str]:
    """Return the contenders that a function makes, those that run, and what keeps the others from running."""
    problems = []
    found = []
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            made = make(x)
        except Exception as error:
            return [], _problem(error)
        for contender in made:
            try:
                contender.run()  # some are built, or fail to be, when they first run
                found.append(contender)
            except Exception as error:
                problems.append(f"{contender.name}: {_problem(error)}")
    return found, "; ".join(problems)


def _problem(error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else ""
    return f"not measured, {type(error).__name__}: {first[:100]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version({"microxcaling": "mx"}.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _ml_dtypes(x: Tensor) -> list[Contender]:
    if x.dtype is not torch.float32:
        array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = x.numpy()
    return [
        Contender(name=f"ml_dtypes {name}", run=lambda to=to: array.astype(to).astype(array.dtype))
        for name, to in (("e4m3fn", ml_dtypes.float8_e4m3fn), ("e3m2fn", ml_dtypes.float6_e3m2fn))
    ]


def _gfloat(x: Tensor) -> list[Contender]:
    array = x.float().numpy()
    format = gfloat.formats.format_info_ocp_e4m3
    return [
        Contender(name="gfloat e4m3fn", run=lambda: gfloat.round_ndarray(format, array, sat=True), arbitrary=True),
    ]


def _torchao(x: Tensor) -> list[Contender]:
    from torchao.float8.float8_utils import to_fp8_saturated
    from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    dtype, e4m3fn = x.dtype, torch.float8_e4m3fn

    def floatx(e: int, m: int) -> Tensor:
        return _floatx_unpacked_to_f32(_f32_to_floatx_unpacked(x.float(), e, m), e, m).to(dtype)

    def mx() -> Tensor:
        scale, data = to_mx(x, e4m3fn, 32, ScaleCalculationMode.RCEIL)
        return to_dtype(data, scale, e4m3fn, 32, dtype)

    return [
        Contender(name="torchao e4m3fn", run=lambda: to_fp8_saturated(x, e4m3fn).to(dtype)),
        Contender(name="torchao e3m2fn", run=lambda: floatx(3, 2), arbitrary=True),
        Contender(name="torchao mxfp8_e4m3", run=mx),
    ]


def _qtorch(x: Tensor) -> list[Contender]:
    from qtorch.quant import float_quantize

    wide = x.float()
    return [
        Contender(name=f"qtorch e4m3 {mode}", run=lambda mode=mode: float_quantize(wide, 4, 3, mode), arbitrary=True)
        for mode in ("nearest", "stochastic")
    ]


def _microxcaling(x: Tensor) -> list[Contender]:
    """Not on PyPI: pip install git+https://github.com/microsoft/microxcaling."""
    from mx.elemwise_ops import _quantize_elemwise_core

    def run() -> Tensor:
        return _quantize_elemwise_core(x, 5, 4, 448.0, round="even", saturate_normals=True)

    return [Contender(name="microxcaling e4m3", run=run, arbitrary=True)]


PEERS = {
    "ml_dtypes": _ml_dtypes,
    "gfloat": _gfloat,
    "torchao": _torchao,
    "qtorch": _qtorch,
    "microxcaling": _microxcaling,
}
