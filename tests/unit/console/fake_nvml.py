"""A FAKE of NVIDIA's ``pynvml`` module, for machines without a GPU: two cards, listed in another order than CUDA's.

Names and return types are those of nvidia-ml-py 13; the constants come from the real module.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pynvml import (
    NVML_CLOCK_SM,
    NVML_ERROR_NOT_FOUND,
    NVML_ERROR_NOT_SUPPORTED,
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    NVML_TEMPERATURE_GPU,
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
    NVML_VOLATILE_ECC,
    NVMLError,
)

__all__ = [
    "NVML_CLOCK_SM", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_TEMPERATURE_GPU", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN",
    "NVML_VOLATILE_ECC", "NVMLError",
]  # fmt: skip


class FakeNvml:
    """The module's functions over ``cards``: UUID -> values; a missing value raises NVML's own error."""

    def __init__(self, cards: dict[str, dict[str, Any]]) -> None:
        self.cards, self.shut_down = cards, False
        for name in __all__:
            setattr(self, name, globals()[name])

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:
        if uuid not in self.cards:
            raise NVMLError(NVML_ERROR_NOT_FOUND)
        return self.cards[uuid]

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=_known(card, "total"), used=_known(card, "used"))

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(gpu=_known(card, "utilization"), memory=0)

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> str:
        return _known(card, "name")

    def nvmlDeviceGetTemperature(self, card: dict[str, Any], sensor: int) -> int:
        assert sensor == NVML_TEMPERATURE_GPU
        return _known(card, "temperature")

    def nvmlDeviceGetTemperatureThreshold(self, card: dict[str, Any], kind: int) -> int:
        assert kind == NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return _known(card, "slowdown")

    def nvmlDeviceGetPowerUsage(self, card: dict[str, Any]) -> int:
        return _known(card, "milliwatts")

    def nvmlDeviceGetEnforcedPowerLimit(self, card: dict[str, Any]) -> int:
        return _known(card, "limit_milliwatts")

    def nvmlDeviceGetClockInfo(self, card: dict[str, Any], clock: int) -> int:
        assert clock == NVML_CLOCK_SM
        return _known(card, "mhz")

    def nvmlDeviceGetMaxClockInfo(self, card: dict[str, Any], clock: int) -> int:
        assert clock == NVML_CLOCK_SM
        return _known(card, "max_mhz")

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: dict[str, Any]) -> int:
        return _known(card, "reasons")

    def nvmlDeviceGetTotalEccErrors(self, card: dict[str, Any], error: int, counter: int) -> int:
        assert (error, counter) == (NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC)
        return _known(card, "ecc")


def _known(card: dict[str, Any], name: str) -> Any:
    if name not in card:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return card[name]
