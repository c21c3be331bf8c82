"""The native CPU kernels: C++ files, compiled by the machine's compiler when a cast first wants them.

The compiled library lies in the user's cache folder under a name made of the source, the compiler and the processor, so
that it is built once (some seconds) and never used where it does not belong. It links nothing but the OpenMP runtime
that torch has loaded: its threads are torch's threads. Where the compiler's OpenMP is not that of the runtime (Clang
beside GNU's libgomp, which torch's wheels for Linux bring), the kernel has one thread. Where there is no compiler, or the
folder cannot be written, or ``ALTGRAD_KERNEL=torch`` says so, casts use tensor operations. The bits are always the same;
``status()`` tells what is used and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import attrs

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.files import cache_folder

_FOLDER = Path(__file__).with_name("cpp")
SOURCES = tuple(sorted(_FOLDER.glob("*.cpp")))
_HEADERS = tuple(sorted(_FOLDER.glob("*.h")))
KERNELS = ("auto", "native", "torch")
_TIMEOUT_S = 120
_NO_OPENMP = "torch has loaded no OpenMP runtime that the kernel could share"
# Contraction would fuse a product that is not exact into a sum; without traps and errno comparisons become masks.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w")


@attrs.frozen(kw_only=True)
class KernelStatus:
    """Which kernel casts on the CPU, and why."""

    native: bool
    """Whether the compiled kernel is in use."""
    reason: str
    """The compiler and the library's path, or what stands in the way."""
    one_thread: str = ""
    """Why the compiled kernel has one thread whatever torch has; empty where it has torch's."""
    library: ctypes.CDLL | None = attrs.field(default=None, repr=False, eq=False)
    """The loaded library."""


class _Unavailable(Exception):
    """Why there is no native kernel."""


@cache
def status() -> KernelStatus:
    """Load the kernel, compiling it the first time on this machine, and tell how that went; never fails for want of a
    compiler.

    The environment variable ``ALTGRAD_KERNEL`` chooses: ``auto`` (the default), ``torch`` (never the native one), or
    ``native``, which makes it an ``AltgradError`` when the kernel cannot be built.
    """
    wanted = os.environ.get("ALTGRAD_KERNEL", "auto") or "auto"
    if wanted not in KERNELS:
        raise AltgradError("ALTGRAD_KERNEL: " + unknown("kernel", wanted, KERNELS))
    if wanted == "torch":
        return KernelStatus(native=False, reason="ALTGRAD_KERNEL=torch")
    try:
        return _load()
    except _Unavailable as error:
        if wanted == "native":
            raise AltgradError(f"ALTGRAD_KERNEL=native, but the native kernel cannot be had: {error}.") from error
        return KernelStatus(native=False, reason=str(error))


def _load() -> KernelStatus:
    if sys.byteorder != "little":
        raise _Unavailable("it is written for little-endian machines")
    compiler, openmp = _compiler(), _openmp()
    command = shlex.join(compiler)
    name = f"cast-{_fingerprint(compiler, openmp)}"
    try:
        folder = kernel_folder()
        # With torch's threads where the compiler can make it so, else with one.
        builds: dict[Path, str | None] = {folder / f"{name}.so": openmp} if openmp else {}
        builds[folder / f"{name}-one-thread.so"] = None
        path = next((path for path in builds if path.exists()), None)
    except (OSError, RuntimeError) as error:  # no home folder, or one that is not ours
        raise _Unavailable(
            f"there is no folder to keep the kernel in ({error}); ALTGRAD_KERNEL_CACHE names one"
        ) from error
    path = path or _build(compiler, builds)
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        raise _Unavailable(f"{path} does not load ({error}); delete it to have it built again") from error
    one_thread = ""
    if builds[path] is None:
        one_thread = f"{command} does not build for torch's {Path(openmp).name}; CXX=g++ may" if openmp else _NO_OPENMP
    return KernelStatus(native=True, reason=f"{path} ({command})", one_thread=one_thread, library=library)


def kernel_folder() -> Path:
    """Return the folder of compiled kernels: ``$ALTGRAD_KERNEL_CACHE``, else AltGrad's cache folder."""
    chosen = os.environ.get("ALTGRAD_KERNEL_CACHE")
    return Path(chosen) if chosen else cache_folder()


def _compiler() -> list[str]:
    """Return the command that compiles: the one that CXX names, as ``ccache g++``, else the first one on the path."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in chosen[:1] or ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return [found, *chosen[1:]]
    if chosen:
        raise _Unavailable(f"there is no {chosen[0]}, which the environment variable CXX names, on the path")
    raise _Unavailable("no C++ compiler (c++, g++, clang++, or the one that CXX names) on the path")


def _fingerprint(compiler: list[str], openmp: str | None) -> str:
    """Hash what the library depends on: the source, the flags, the compiler, the processor's features, OpenMP."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise _Unavailable(f"{shlex.join(compiler)} --version does not work ({error})") from error
    parts = [path.read_bytes() for path in (*SOURCES, *_HEADERS)]
    parts += [repr(_FLAGS).encode(), version, _processor(), (openmp or "").encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """Return what ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    kept = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kept)}))


def _openmp() -> str | None:
    """Return the path of the OpenMP runtime that torch has loaded into this process, None when there is none."""
    import torch

    assert torch.get_num_threads() >= 1
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            return path
    return None


def _build(compiler: list[str], builds: dict[Path, str | None]) -> Path:
    """Compile the first library of ``builds`` (path -> OpenMP runtime to link) that loads; return its path."""
    folder = next(iter(builds)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as workshop:
            failure = ""
            for processor in (["-march=native"], ["-mcpu=native"], []):
                for path, openmp in builds.items():
                    built = Path(workshop) / path.name
                    failure = _compile(compiler, [*_FLAGS, *processor], openmp, built)
                    if not failure:
                        os.replace(built, path)
                        return path
    except OSError as error:
        raise _Unavailable(f"the kernel cannot be kept in {folder} ({error})") from error
    raise _Unavailable(f"{shlex.join(compiler)} cannot compile it: {failure}")


def _compile(compiler: list[str], flags: list[str], openmp: str | None, built: Path) -> str:
    """Compile and link the sources to ``built``; return what went wrong, nothing when the library loads."""
    objects = []
    for source in SOURCES:
        objects.append(str(built.with_name(f"{source.stem}.o")))
        # -fopenmp compiles the pragmas; the runtime's path, not the flag, says what to link. Two OpenMP runtimes in one
        # process would each keep a thread on every core.
        pragmas = ["-fopenmp"] if openmp else []
        failure = _run([*compiler, *flags, *pragmas, "-c", str(source), "-o", objects[-1]])
        if failure:
            return failure
    failure = _run([*compiler, "-shared", *objects, *([openmp] if openmp else []), "-lm", "-o", str(built)])
    if failure:
        return failure
    try:
        ctypes.CDLL(str(built))  # a linker does not miss the functions of an OpenMP that is not the runtime's
    except OSError as error:
        return str(error)
    return ""


def _run(command: list[str]) -> str:
    """Run a compiler; return what it complained of, nothing when it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")


def _declare(library: ctypes.CDLL) -> None:
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.altgrad_cast.argtypes = [
        *(pointer, pointer, pointer, pointer, long, long),  # kind, table, x, q, rows, columns
        *(pointer, pointer, long, long),  # scale, multiplier, block
        *(pointer, long, long),  # keys, number of the first element, columns of the whole
        *(pointer, integer),  # statistics, threads
    ]
    library.altgrad_cast.restype = None
    library.altgrad_amax.argtypes = [pointer, integer, long, long, long, long, pointer, integer]
    library.altgrad_amax.restype = None
    library.altgrad_moments.argtypes = [pointer, integer, long, long, pointer, integer]
    library.altgrad_moments.restype = None
    library.altgrad_products.argtypes = [pointer, pointer, long, pointer, integer]
    library.altgrad_products.restype = None
    library.altgrad_updates.argtypes = [
        *(pointer, pointer, pointer, long, pointer),  # old, now, gradient, elements, grid
        *(ctypes.c_float, ctypes.c_double, pointer, integer),  # inverse scale, power of the largest value, out, threads
    ]
    library.altgrad_updates.restype = None
