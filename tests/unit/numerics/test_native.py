"""The native kernels against the tensor operations they stand in for, and how they are built or done without."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import FloatFormat, get_format, native
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.blockwise import block_counts
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.numerics.sums import moments, products, update_counts

INF, NAN = float("inf"), float("nan")
FORMATS = [
    *("e5m2", "e4m3fn", "e4m3", "e4m3fnuz", "e4m3b11fnuz", "e2m1fn", "bf16", "fp16", "tf32", "fp32", "e0m7", "e1m6f"),
    *("e7m0f", "e6m1f", "e7m8", "e8m3", "e2m5fnuz", "e5m10fn", "binary8p1se", "binary8p3se", "binary8p3ue"),
    *("binary8p4uf", "odd", "e1m0", "e5m22", "e4m23f", "posit8", "takum8", "takum_linear8", "nf4", "int8", "e8m0fnu"),
]
ODD = FloatFormat(name="odd", exponent_bits=6, mantissa_bits=0, specials="none", bias=30)


@pytest.fixture(autouse=True)
def _no_cached_status() -> Iterator[None]:
    yield
    native.status.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setenv("ALTGRAD_KERNEL", kernel)
    native.status.cache_clear()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch):
    """Call a function with the native kernels and with tensor operations."""
    choose(monkeypatch, "auto")
    if not native.status().native:
        pytest.skip(f"no native kernel here: {native.status().reason}")

    def call(function, *args, **kwargs):
        choose(monkeypatch, "native")
        first = function(*args, **kwargs)
        choose(monkeypatch, "torch")
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
    fmt = ODD if name == "odd" else get_format(name)
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
            torch.testing.assert_close(found[8:], counted[8:], rtol=2e-5, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-40, 2.0**30, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_long_tensors_of_every_magnitude(dtype: torch.dtype, scale: float, rounding: str, both) -> None:
    """Tiles that need no counting, that count from thresholds, and that go back to the definition."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300_001, generator=generator) * 0.1).to(dtype)
    x[1000:3000] = 0.0
    x[250_000] = INF
    for fmt, factor in itertools.product(("e5m2", "e4m3fn", "e2m1fn", "bf16", "fp16"), (1.0, 1e-20, 1e18)):
        (q, found), (expected, counted) = both(
            cast, x * factor, fmt, scale=scale * factor, rounding=rounding, draw=Draw(seed=0), dtype=torch.float32,
            statistics=True,
        )  # fmt: skip
        assert same_bits(q, expected)
        assert found[:8].tolist() == counted[:8].tolist(), (fmt, factor)
        torch.testing.assert_close(found[8:], counted[8:], rtol=2e-5, atol=0.0)


def test_any_number_of_threads_gives_the_same_bits_and_statistics(both) -> None:
    x = torch.randn(700, 1001)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for block, rounding in itertools.product((None, (1, 32), (32, 1)), ("nearest_even", "stochastic")):
                scale = 0.1 if block is None else torch.full(block_counts(x.shape, block), 0.1)
                q, vector = cast(
                    x, "e4m3fn", scale=scale, block=block, rounding=rounding, draw=Draw(seed=1), statistics=True
                )
                results.append(
                    (count, q, vector, tensor_amax(x), block_amax(x, (3, 77)), moments(x), products(x, x + 1))
                )
    finally:
        torch.set_num_threads(threads)
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


def test_a_damaged_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(tmp_path))
    choose(monkeypatch, "auto")
    if not native.status().native:
        pytest.skip(native.status().reason)
    (library,) = tmp_path.glob("*.so")
    damaged = tmp_path / "other"
    damaged.mkdir()
    (damaged / library.name).write_bytes(b"no library")
    monkeypatch.setenv("ALTGRAD_KERNEL_CACHE", str(damaged))
    choose(monkeypatch, "auto")
    assert not native.status().native
    assert f"{damaged / library.name} does not load" in native.status().reason
    assert "delete it" in native.status().reason


def test_unknown_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "gpu")
    with pytest.raises(AltgradError, match=r"ALTGRAD_KERNEL: Unknown kernel 'gpu'.*auto, native, torch"):
        native.status()


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
def test_narrow_blocks_on_two_threads(width: int, both) -> None:
    """A block is one thread's: 524,288 lies in a block that crosses a multiple of the tile for most widths."""
    x = torch.full((1, 2**20), 0.01)
    x[0, 524_288] = 100.0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = both(block_amax, x, (1, width))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first, second)
    assert first.max() == 100.0


def test_negated_views_traces_and_default_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    choose(monkeypatch, "auto")
    x = torch.tensor([-1.1, 2.3, -3.7])
    values = torch.tensor([-1.0, 2.5, -3.5])
    assert torch.equal(cast(torch._neg_view(x), "e5m2", dtype=torch.float32)[0], -values)
    traced = make_fx(lambda t: cast(t, "e5m2", dtype=torch.float32)[0])(x)
    assert torch.equal(traced(-x), -values)
    with torch.device("meta"):
        assert torch.equal(cast(x, "e5m2", dtype=torch.float32)[0], values)


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
