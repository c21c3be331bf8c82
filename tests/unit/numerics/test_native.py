"""The native kernels against the tensor operations they stand in for, and how they are built or done without."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.environment import cast_kernel
from altgrad_core.numerics import FloatFormat, TableFormat, get_format, native
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.blockwise import block_counts
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.codes import all_values, decode, encode
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.numerics.sums import moments, products, update_counts

INF, NAN = float("inf"), float("nan")
FORMATS = [
    *("e5m2", "e4m3fn", "e4m3", "e4m3fnuz", "e4m3b11fnuz", "e2m1fn", "bf16", "fp16", "tf32", "fp32", "e0m7", "e1m6f"),
    *("e7m0f", "e6m1f", "e7m8", "e8m3", "e2m5fnuz", "e5m10fn", "binary8p1se", "binary8p3se", "binary8p3ue"),
    *(
        "binary8p4uf",
        "odd",
        "e1m0",
        "e5m22",
        "e4m23f",
        "posit8",
        "takum8",
        "takum_linear8",
        "nf4",
        "int8",
        "e8m0fnu",
        "one bit",
    ),
]
UNNAMED = {
    "odd": FloatFormat(name="odd", exponent_bits=6, mantissa_bits=0, specials="none", bias=30),
    "one bit": TableFormat(name="one bit", table=(-1.0, 1.0), beyond=(-3.0, 2.0)),
}


@pytest.fixture(autouse=True)
def _no_cached_status() -> Iterator[None]:
    yield
    native.status.cache_clear()


def biased(exponent_bits: int, mantissa_bits: int, bias: int, specials: str = "none", **options: bool) -> FloatFormat:
    name = f"e{exponent_bits}m{mantissa_bits}_bias_{bias}{'' if options.get('signed', True) else '_unsigned'}"
    return FloatFormat(
        name=name, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, bias=bias, specials=specials, **options
    )


# What neither a sum nor the bits alone round: units beside float32's subnormals or finer, values next to its largest or
# beyond, and one mantissa bit less than float32, or none.
LIFTED = [
    *(get_format(name) for name in ("e8m3fnuz", "e8m6fnuz", "e9m3", "e9m3fn", "e10m5f", "e11m2", "e5m22", "e7m0f")),
    *(get_format(name) for name in ("binary8p1ue", "binary8p1se", "binary12p5ue", "binary10p2uf", "e10m8fnuz")),
    *(biased(7, 3, 20, "ieee"), biased(7, 3, -50), biased(8, 3, 140), biased(8, 2, 149), biased(8, 0, 133)),
    *(biased(7, 0, 100), biased(6, 22, 40), biased(8, 14, 130), biased(9, 2, 255, "ieee"), biased(10, 3, 500, "fn")),
    *(biased(5, 10, 120, "fnuz"), biased(5, 2, 150), biased(1, 0, 1), biased(4, 3, -90), biased(8, 12, 145)),
    *(biased(5, 23, 60), biased(8, 3, 140, signed=False), biased(7, 3, 20, signed=False)),
]


def choose(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setenv("ALTGRAD_KERNEL", kernel)
    native.status.cache_clear()


@pytest.fixture
def both(kernel: Callable[[str], None]):
    """Call a function with the native kernels and with tensor operations."""

    def call(function, *args, **kwargs):
        kernel("native")
        first = function(*args, **kwargs)
        kernel("torch")
        return first, function(*args, **kwargs)

    return call


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    """[7, 301] numbers of all magnitudes, random bits, and specials: rows end inside a lane and inside a block."""
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(1000, generator=generator) * torch.exp2(
        torch.randint(-30, 30, (1000,), generator=generator).float()
    )
    patterns = torch.randint(-(2**31), 2**31 - 1, (1102,), generator=generator).to(torch.int32).view(torch.float32)
    x = torch.cat([wide, patterns, torch.tensor([0.0, -0.0, INF, -INF, NAN])])
    return x.to(dtype).reshape(7, 301)


def same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in FORMATS]
    + [(name, dtype) for name in ("e4m3fn", "bf16", "binary8p1se") for dtype in (torch.bfloat16, torch.float16)],
)
def test_every_cast_has_the_bits_and_counts_of_the_tensor_operations(name: str, dtype: torch.dtype, both) -> None:
    fmt = UNNAMED.get(name) or get_format(name)
    x = inputs(dtype)
    draw = Draw(seed=1, step=2, name="n", start=(3, 7), columns=400)
    scales: list[tuple[float | Tensor, tuple[int, int] | None]] = [(1.0, None), (0.3, None)]
    for block in ((1, 32), (3, 1), (2, 5)):
        scales.append(
            (torch.rand(block_counts(x.shape, block), generator=torch.Generator().manual_seed(5)) + 0.1, block)
        )
    held = [torch.float32] + ([torch.bfloat16] if fmt.fits_bfloat16 else [])
    for rounding, saturation, (scale, block), out in itertools.product(ROUNDINGS, SATURATIONS, scales, held):
        for bits in (32, 9) if rounding == "stochastic" else (32,):
            (q, found), (expected, counted) = both(
                cast, x, fmt, scale=scale, block=block, rounding=rounding, saturation=saturation, draw=draw,
                random_bits=bits, dtype=out, multiplier=scale, statistics=True,
            )  # fmt: skip
            case = (name, rounding, saturation, block, bits, out)
            assert same_bits(q, expected), case
            assert dict(zip(FIELDS[:8], found[:8].tolist())) == dict(zip(FIELDS[:8], counted[:8].tolist())), case
            torch.testing.assert_close(found[8:], counted[8:], rtol=1e-5, atol=0.0, equal_nan=True)


def marks(format: FloatFormat) -> Tensor:
    """All bfloat16 numbers; those around midpoints of the format, for all exponents; subnormals."""
    shorts = torch.arange(2**16, dtype=torch.int64) << 16
    tiny = torch.arange(-4000, 4000)
    # Midpoints of values that begin a binade, and their neighbours: 2^e (1 + (k + 1/2) 2^-M).
    drop = 23 - format.mantissa_bits
    ends = torch.arange(256)[:, None] << 23
    inner = torch.tensor([0, 1, 2, (1 << format.mantissa_bits) - 1]) << drop
    middles = (ends + inner + (1 << drop >> 1)).view(-1, 1) + torch.tensor([-1, 0, 1])
    bits = torch.cat([shorts, tiny, middles.reshape(-1), middles.reshape(-1) - 2**31])
    return ((bits + 2**31) % 2**32 - 2**31).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("format", LIFTED, ids=lambda format: format.name)
def test_formats_at_the_ends_of_float32(format: FloatFormat, both) -> None:
    """All bfloat16 inputs and many others to nearest, some in every mode; the reference is float64 arithmetic."""
    x = marks(format)
    for rounding in ROUNDINGS:
        some = x if rounding == "nearest_even" else x[::13]
        options = {"rounding": rounding, "draw": Draw(seed=3)}
        assert same_bits(*(q for q, _ in both(cast, some, format, dtype=torch.float32, **options))), rounding
        if format.fits_bfloat16 and rounding in ("nearest_even", "stochastic"):
            assert same_bits(*(q for q, _ in both(cast, some.bfloat16(), format, **options))), rounding


@pytest.mark.parametrize("format", LIFTED, ids=lambda format: format.name)
def test_statistics_at_the_ends_of_float32(format: FloatFormat, both) -> None:
    x = inputs()
    for rounding, saturation, scale in itertools.product(("nearest_even", "up"), SATURATIONS, (1.0, 0.3, 2.0**-126)):
        (q, found), (expected, counted) = both(
            cast, x, format, scale=scale, rounding=rounding, saturation=saturation, dtype=torch.float32, statistics=True
        )
        case = (rounding, saturation, scale)
        assert same_bits(q, expected), case
        assert found[:8].tolist() == counted[:8].tolist(), case
        torch.testing.assert_close(found[8:], counted[8:], rtol=1e-5, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    "name", ["e8m3fnuz", *(pytest.param(name, marks=pytest.mark.slow) for name in ("e7m0f", "e5m22", "posit8", "nf4"))]
)
def test_ten_million_random_patterns(name: str, both) -> None:
    generator = torch.Generator().manual_seed(11)
    for _ in range(5):
        x = torch.randint(-(2**31), 2**31, (2_000_003,), generator=generator).to(torch.int32).view(torch.float32)
        assert same_bits(*(q for q, _ in both(cast, x, name, dtype=torch.float32)))


@pytest.mark.parametrize("name", ["posit8", "takum8", "takum_linear8", "nf4", "int8", "e8m0fnu", "fine", "wide"])
def test_tables_by_buckets(name: str, both) -> None:
    """Among them tables whose buckets have one threshold, several around zero, or several everywhere."""
    if name == "fine":  # 2,000 neighbours in float32, then large ones
        values = torch.arange(2048).to(torch.int32).add(0x3F800000).view(torch.float32).tolist()
        fmt = TableFormat(name=name, table=(*values[:-1], 1e30))
    elif name == "wide":
        fmt = TableFormat(name=name, table=(0.0, 1e-45, 3e-45, 1e38, 1e300, -1e-300, -1e-44, -3e38))
    else:
        fmt = get_format(name)
    random = torch.randint(-(2**31), 2**31, (20_000,), generator=torch.Generator().manual_seed(5))
    near = torch.tensor(fmt.numbers).float().view(torch.int32)[:, None] + torch.arange(-3, 4, dtype=torch.int32)
    patterns = torch.cat([random.to(torch.int32), near.view(-1), torch.arange(-500, 500, dtype=torch.int32)])
    x = torch.cat([patterns.view(torch.float32), torch.tensor([0.0, -0.0, INF, -INF, NAN])])
    for rounding, saturation in [
        *itertools.product(ROUNDINGS[:-1], ("none",)),
        ("up", "finite"),
        ("down", "propagate"),
    ]:
        (q, found), (expected, counted) = both(
            cast, x, fmt, rounding=rounding, saturation=saturation, dtype=torch.float32, statistics=True
        )
        assert same_bits(q, expected), (rounding, saturation)
        assert found[:8].tolist() == counted[:8].tolist(), (rounding, saturation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 3, 7, 16, 17, 48, 64])
def test_short_rows_and_every_shape_of_block(columns: int, dtype: torch.dtype, both) -> None:
    x = inputs().reshape(-1)[: 2107 // columns * columns].view(-1, columns).to(dtype)
    generator = torch.Generator().manual_seed(columns)
    blocks = [(1, 1), (1, columns), (1, 16), (3, 1), (32, 1), (3, 4)]
    draws = (Draw(seed=1, name="n"), Draw(seed=1, start=(2, 1), columns=columns + 3), Draw(seed=1, start=(2**32, 0)))
    for block, rounding, draw in itertools.product(blocks, ("nearest_even", "stochastic", "up"), draws):
        if rounding != "stochastic" and draw is not draws[0]:
            continue
        scale = torch.rand(block_counts(x.shape, block), generator=generator) + 0.1
        if columns % 2:
            scale = torch.exp2(scale.log2().round())
        for multiplier in (-0.5, scale) if rounding == "nearest_even" else (1.0,):
            (q, found), (expected, counted) = both(
                cast, x, "e4m3fn", scale=scale, block=block, rounding=rounding, draw=draw, dtype=dtype,
                multiplier=multiplier, statistics=True,
            )  # fmt: skip
            assert same_bits(q, expected), (block, rounding, draw)
            assert found[:8].tolist() == counted[:8].tolist(), (block, rounding, draw)
            torch.testing.assert_close(found[8:], counted[8:], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-40, 2.0**30, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_long_tensors_of_every_magnitude(
    dtype: torch.dtype, scale: float, rounding: str, kernel: Callable[[str], None], threads: Callable[[int], None]
) -> None:
    """Tiles that need no counting, that count from thresholds, and that go back to the definition; on two threads."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(100_001, generator=generator) * 0.1).to(dtype)
    x[1000:3000] = 0.0
    x[90_000] = INF
    for fmt, factor in itertools.product(("e5m2", "e4m3fn", "e2m1fn", "bf16", "fp16"), (1.0, 1e-20, 1e18)):
        large, options = x * factor, {"scale": scale * factor, "rounding": rounding, "draw": Draw(seed=0)}
        results = []
        for which, count in (("native", 2), ("torch", 1)):
            kernel(which)
            threads(count)
            results.append(cast(large, fmt, **options, dtype=torch.float32, statistics=True))
        (q, found), (expected, counted) = results
        assert same_bits(q, expected)
        assert found[:8].tolist() == counted[:8].tolist(), (fmt, factor)
        torch.testing.assert_close(found[8:], counted[8:], rtol=1e-5, atol=0.0)


def test_any_number_of_threads_gives_the_same_bits_and_statistics(
    kernel: Callable[[str], None], threads: Callable[[int], None]
) -> None:
    kernel("native")
    x = torch.randn(700, 1001)
    results = []
    for count in (1, 2, 3):
        threads(count)
        for block, rounding in itertools.product((None, (1, 32), (32, 1)), ("nearest_even", "stochastic")):
            scale = 0.1 if block is None else torch.full(block_counts(x.shape, block), 0.1)
            q, vector = cast(
                x, "e4m3fn", scale=scale, block=block, rounding=rounding, draw=Draw(seed=1), statistics=True
            )
            results.append((count, q, vector, tensor_amax(x), block_amax(x, (3, 77)), moments(x), products(x, x + 1)))
    for index in range(6):
        first, *others = results[index::6]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first[1:], other[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (17,), (70_000,), (33, 65), (5, 4, 48), (3, 2500)])
def test_amax_is_exact(shape: tuple[int, ...], dtype: torch.dtype, both) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    a, b = both(tensor_amax, x)
    assert a == b == x.abs().max().float()
    for block in ((1, 32), (128, 128), (32, 1), (1, 1), (2, 3), (7, 5000), (1, 17)):
        native_blocks, blocks = both(block_amax, x, block)
        assert torch.equal(native_blocks, blocks)
    if x.numel() > 2:
        x.view(-1)[1] = NAN
        assert all(amax.isnan() for amax in both(tensor_amax, x))
        x.view(-1)[1] = -INF
        assert both(tensor_amax, x) == (torch.tensor(INF), torch.tensor(INF))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (19,), (200_003,), (3, 100_000), (300, 33), (4, 5, 6)])
def test_moments_and_products(shape: tuple[int, ...], dtype: torch.dtype, both) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    if len(shape) > 1:
        x[1] = 0.0
    first, second = both(moments, x)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-9)
    assert first[3] == (1 if len(shape) > 1 else 0)
    y = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(*both(products, x.float(), y), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "bf16", "tf32", "e7m0f", "e0m7", "nf4", "binary8p3ue"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-6, 0.3])
def test_update_counts(name: str, scale: float, both) -> None:
    generator = torch.Generator().manual_seed(6)
    before = torch.randn(40_001, generator=generator)
    step = torch.randn(40_001, generator=generator) * torch.exp2(
        torch.randint(-20, 0, (40_001,), generator=generator).float()
    )
    step[::7] = 0.0
    gradient = step.clone()
    gradient[::3] = 0.0
    first, second = both(update_counts, before, before + step, gradient, get_format(name), torch.tensor(scale))
    assert first[:4].tolist() == second[:4].tolist()
    torch.testing.assert_close(first[4], second[4], rtol=1e-5, atol=0.0)


def test_without_a_compiler_casts_go_on_with_tensor_operations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    choose(monkeypatch, "auto")
    assert not native.status().native
    assert "no C++ compiler" in native.status().reason
    assert cast(torch.tensor([1.1]), "e5m2")[0].item() == 1.0
    choose(monkeypatch, "native")
    with pytest.raises(AltgradError, match=r"ALTGRAD_KERNEL=native, but .* no C\+\+ compiler"):
        native.status()


def test_a_compiler_that_fails_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "cannot execute cc1plus" >&2\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path / "cache"))
    choose(monkeypatch, "auto")
    assert native.status() == native.KernelStatus(
        native=False, reason=f"{compiler} cannot compile it: cannot execute cc1plus"
    )
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path / "file" / "cache"))
    choose(monkeypatch, "auto")
    assert not native.status().native
    assert "cannot be kept in" in native.status().reason or "no C++ compiler" in native.status().reason


def test_a_damaged_library_is_named(
    loaded_kernel: native.KernelStatus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not loaded_kernel.native:
        pytest.skip(loaded_kernel.reason)
    damaged = tmp_path / Path(loaded_kernel.reason.split(" (")[0]).name
    damaged.write_bytes(b"no library")
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path))
    choose(monkeypatch, "auto")
    assert not native.status().native
    assert f"{damaged} does not load" in native.status().reason
    assert "delete it" in native.status().reason


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Build, into a cache of its own, a source that has all functions of the kernel but compiles in no time; return the
    compiler."""
    try:
        (compiler,) = native._compiler()
    except native._Unavailable as error:
        pytest.skip(str(error))
    names = {name for source in native.SOURCES for name in re.findall(r"\baltgrad_\w+(?=\()", source.read_text())}
    assert len(names) >= 5
    source = tmp_path / "quick.cpp"
    source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in sorted(names)))
    monkeypatch.setattr(native, "SOURCES", (source,))
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path / "cache"))
    choose(monkeypatch, "auto")
    return compiler


def test_a_compiler_with_arguments(quick_build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"env {quick_build}")
    assert native.status().native
    assert native.status().reason.endswith(f"/env {quick_build})")
    assert native.status().one_thread == ""


def test_a_compiler_that_is_not_there_is_not_passed_over(quick_build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nonesuch++ -O2")
    assert native.status() == native.KernelStatus(
        native=False, reason="there is no nonesuch++, which the environment variable CXX names, on the path"
    )


def test_an_openmp_that_is_not_torchs_leaves_one_thread_and_is_said(
    quick_build: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Clang's beside libgomp: it compiles and links, and the library then asks for functions that nothing has."""
    openmp = native._openmp()
    if openmp is None:
        pytest.skip("torch has no OpenMP runtime here")
    (tmp_path / "foreign.h").write_text(
        'extern "C" void __kmpc_nothing(); void (*volatile altgrad_foreign)() = __kmpc_nothing;'
    )
    foreign = tmp_path / "clang"
    foreign.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = -fopenmp ] && exec {quick_build} "$@" -include {tmp_path}/foreign.h; done\n'
        f'exec {quick_build} "$@"\n'
    )
    foreign.chmod(foreign.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(foreign))
    for _ in ("built", "found in the cache"):
        native.status.cache_clear()
        assert native.status().native
        assert native.status().one_thread == f"{foreign} does not build for torch's {Path(openmp).name}; CXX=g++ may"
        assert cast_kernel() == f"native, one thread, because: {native.status().one_thread}"
    assert [path.name.endswith("-one-thread.so") for path in (tmp_path / "cache").iterdir()] == [True]
    monkeypatch.setattr(native, "_openmp", lambda: None)
    native.status.cache_clear()
    assert cast_kernel().startswith("native, one thread, because: torch has loaded no OpenMP runtime")


@pytest.mark.slow
def test_clang_gives_the_bits_of_the_tensor_operations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("no clang++ on the path")
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path))
    results = []
    for kernel in ("native", "torch"):
        choose(monkeypatch, kernel)
        native.status()
        for name, rounding in itertools.product(("e4m3fn", "bf16", "e7m0f", "posit8"), ROUNDINGS):
            results.append(
                cast(inputs(), name, scale=0.3, rounding=rounding, draw=Draw(seed=1), dtype=torch.float32)[0]
            )
    assert all(same_bits(a, b) for a, b in zip(results[: len(results) // 2], results[len(results) // 2 :], strict=True))


def test_unknown_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "gpu")
    with pytest.raises(AltgradError, match=r"ALTGRAD_KERNEL: Unknown kernel 'gpu'.*auto, native, torch"):
        native.status()


@pytest.mark.usefixtures("quick_build")
def test_builds_at_once_all_get_it(tmp_path: Path) -> None:
    """As processes do that start together: each compiles in a folder of its own and moves the library in place."""
    together = threading.Barrier(4)

    def load(_: int) -> native.KernelStatus:
        together.wait()
        return native._load()

    with ThreadPoolExecutor(4) as pool:
        said = set(pool.map(load, range(4)))
    (only,) = said
    assert only.native
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == [only.reason.split(" (")[0]]


@pytest.mark.slow
def test_two_processes_that_build_at_once_both_get_it(tmp_path: Path) -> None:
    code = "from altgrad_core.numerics.native import status; print(status().native, status().reason)"
    environment = {**os.environ, "ALTGRAD_KERNEL_CACHE": str(tmp_path), "ALTGRAD_KERNEL": "auto"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=120)[0].strip() for process in running}
    assert len(said) == 1
    if "no C++ compiler" not in (text := said.pop()):
        assert text.startswith("True")
        assert len(list(tmp_path.glob("*"))) == 1


@pytest.mark.parametrize("width", range(2, 16))
def test_narrow_blocks_on_two_threads(width: int, both, threads: Callable[[int], None]) -> None:
    """A block is one thread's: 524,288 lies in a block that crosses a multiple of the tile for most widths."""
    x = torch.full((1, 2**20), 0.01)
    x[0, 524_288] = 100.0
    threads(2)
    first, second = both(block_amax, x, (1, width))
    assert torch.equal(first, second)
    assert first.max() == 100.0


@pytest.mark.parametrize("name", ["bf16", "e8m3", "e8m3fnuz", "e4m3fn", "e7m0f", "binary8p3ue", "posit8"])
def test_nan_stays_nan_whatever_its_payload(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that lies in the bits that bfloat16 has not, or whose sum with half a unit would carry into the sign."""
    choose(monkeypatch, "auto")
    bits = torch.tensor([0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0x7FC00000]).repeat(20)
    x = torch.cat([bits, bits - 2**31]).to(torch.int32).view(torch.float32)
    for rounding, count in itertools.product(ROUNDINGS, (False, True)):
        if name == "posit8" and rounding == "stochastic":
            continue
        for out in (torch.float32, torch.bfloat16):
            q, _ = cast(x, name, rounding=rounding, draw=Draw(seed=1), dtype=out, statistics=count)
            assert q.isnan().all(), (rounding, count, out)


def test_negated_views_traces_and_default_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    choose(monkeypatch, "auto")
    x = torch.tensor([-1.1, 2.3, -3.7])
    values = torch.tensor([-1.0, 2.5, -3.5])
    assert torch.equal(cast(torch._neg_view(x), "e5m2", dtype=torch.float32)[0], -values)
    traced = make_fx(lambda t: cast(t, "e5m2", dtype=torch.float32)[0])(x)
    assert torch.equal(traced(-x), -values)
    # A table that no other test has, whose constants are therefore made here.
    table = TableFormat(name="new", table=(-1.0, 2.5, -3.5, 7.25), beyond=(-9.0, 9.0))
    for kernel in ("auto", "torch"):
        choose(monkeypatch, kernel)
        with torch.device("meta"):
            assert torch.equal(cast(x, "e5m2", dtype=torch.float32)[0], values)
            for fmt in ("e5m2", table):
                q, vector = cast(x, fmt, statistics=True)
                assert q.float().tolist() == values.tolist()
                assert vector.device.type == "cpu"
                assert torch.equal(decode(encode(x, fmt), fmt), values)
            assert all_values(table).tolist() == [-3.5, -1.0, 2.5, 7.25]
        assert cast(x, table)[0].float().tolist() == values.tolist()


def test_sums_refuse_tensors_of_two_shapes() -> None:
    with pytest.raises(AltgradError, match=r"got the shapes \[\[4\], \[2\]\]"):
        products(torch.ones(4), torch.ones(2))


def test_no_home_folder_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALTGRAD_KERNEL_CACHE", "ALTGRAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def missing() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", missing)
    choose(monkeypatch, "auto")
    assert not native.status().native
    assert "no folder to keep the kernel in" in native.status().reason or "no C++ compiler" in native.status().reason


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn
def test_compiled_code_calls_the_kernel(kernel: Callable[[str], None]) -> None:
    """Values and statistics of one graph of operators, for formats of every path, modes, blocks, dtypes and shapes."""
    kernel("native")
    formats = [UNNAMED.get(name) or get_format(name) for name in ("e5m2", "bf16", "e8m3fnuz", "odd", "nf4", "one bit")]
    draw = Draw(seed=3, step=1, name="x", start=(2, 5), columns=200)

    def every(x: Tensor, scale: Tensor, scales: Tensor, draw: Draw) -> list[Tensor]:
        found = [tensor_amax(x), block_amax(x, (2, 50))]
        for number, f in enumerate(formats):
            how = {"rounding": ROUNDINGS[number % 5], "saturation": SATURATIONS[number % 3], "statistics": True}
            found += cast(x, f, **how)
            found += cast(x, f, scale=scale, multiplier=0.3, dtype=torch.float32, **how)
            found += cast(x, f, scale=scales, block=(2, 50), multiplier=scales, dtype=torch.float32, **how)
            if isinstance(f, FloatFormat):
                found.append(cast(x, f, rounding="stochastic", draw=draw, random_bits=7)[0])
        return found

    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(every, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    for shape, dtype in (((5, 120), torch.float32), ((5, 3, 120), torch.bfloat16), ((0, 120), torch.float16)):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
        x = torch.where(x > 250, INF, x)
        scales = torch.exp2(torch.arange(-3, -3 + 3 * -(-x[..., 0].numel() // 2)).float()).reshape(-1, 3)
        mine, theirs = (run(x, torch.tensor(0.3), scales, draw) for run in (compiled, every))
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype is b.dtype
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    torch.compiler.reset()
    casts = [node for node in graphs[0].graph.nodes if str(node.target).startswith("altgrad.cast")]
    assert len(casts) == 3 * 6 + 4


VIEWS = {
    "dense": lambda x: x,
    "transposed": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 5),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_operators_return_what_the_compiler_is_told(view: str) -> None:
    """Shapes, strides and dtypes, which compiled code takes for granted; and arguments are left alone."""
    x, checks = VIEWS[view](torch.randn(6, 8)), ("test_schema", "test_faketensor")
    constants = get_format("e5m2").constants
    for block, scale in (([], torch.tensor(0.5)), ([1, 4], torch.rand(block_counts(x.shape, (1, 4))) + 0.5)):
        if x.numel():  # of an empty tensor nobody asks it
            torch.library.opcheck(torch.ops.altgrad.amax.default, (x, block), test_utils=checks)
        for dtype, statistics in ((torch.float32, True), (torch.bfloat16, False)):
            how = ("nearest_even", "finite", 32, None, 0, 0, dtype, statistics)
            torch.library.opcheck(
                torch.ops.altgrad.cast.default, (x, constants, scale, None, block, *how), test_utils=checks
            )
