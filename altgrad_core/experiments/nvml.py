"""Reads GPUs through NVML (package ``nvidia-ml-py``, imported only when a run uses a GPU).

NVML counts every card of the machine while CUDA counts those that ``CUDA_VISIBLE_DEVICES`` leaves, in another order, so
a GPU is found by its UUID. What a card does not support, or a container forbids, is None.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from altgrad_core.experiments.hardware import Gpu, GpuSample

# Bits of nvmlClocksEventReasons (nvml.h).
_REASONS = {
    0x001: "idle",
    0x002: "clocks set",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clocks",
}
_MIB = 2**20


class NvmlUnavailable(Exception):
    """There is no NVML to ask, or it does not know a GPU; the text says why."""


class NvmlReader:
    """Reads the GPUs with ``uuids``, in the order of the ranks that use them, beginning with ``first_rank``."""

    def __init__(self, uuids: Sequence[str], *, node: str, first_rank: int = 0) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise NvmlUnavailable("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        try:
            self._nvml.nvmlInit()
            handles = [self._nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except self._nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML: {error}") from None
        self._handles = dict(enumerate(handles, first_rank))
        self.gpus = [
            self._facts(rank, handle, uuid, node)
            for (rank, handle), uuid in zip(self._handles.items(), uuids, strict=True)
        ]

    def sample(self) -> list[GpuSample]:
        """Read every GPU; takes a few milliseconds for each."""
        return [self._sample(rank, handle) for rank, handle in self._handles.items()]

    def close(self) -> None:
        """Let go of NVML."""
        self._read(self._nvml.nvmlShutdown)

    def _facts(self, rank: int, handle: Any, uuid: str, node: str) -> Gpu:
        nvml = self._nvml
        memory = self._read(nvml.nvmlDeviceGetMemoryInfo, handle)
        return Gpu(
            rank=rank,
            node=node,
            uuid=uuid,
            name=self._read(nvml.nvmlDeviceGetName, handle) or "unknown GPU",
            total_mib=_scaled(memory and memory.total, _MIB),
            slowdown_c=self._read(
                nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            ),
            power_limit_w=_scaled(self._read(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1000),
            sm_max_mhz=self._read(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        )

    def _sample(self, rank: int, handle: Any) -> GpuSample:
        nvml = self._nvml
        memory = self._read(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._read(nvml.nvmlDeviceGetUtilizationRates, handle)
        bits = self._read(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        return GpuSample(
            rank=rank,
            used_mib=_scaled(memory and memory.used, _MIB),
            utilization=rates and rates.gpu,
            temperature_c=self._read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=_scaled(self._read(nvml.nvmlDeviceGetPowerUsage, handle), 1000),
            sm_mhz=self._read(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            throttle=None if bits is None else [name for bit, name in _REASONS.items() if bits & bit],
            ecc=self._read(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
        )

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def _scaled(value: float | None, unit: int) -> float | None:
    return None if value is None else round(value / unit, 1)
