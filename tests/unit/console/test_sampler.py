"""Reading GPUs and host. There is no GPU here: NVML is ``fake_nvml``, with the real module's names and error class."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import FakeNvml

from altgrad_core.console.state import RunState
from altgrad_core.experiments.hardware import Gpu, GpuSample, HostSample, as_facts, of_facts
from altgrad_core.experiments.nvml import NvmlReader, NvmlUnavailable
from altgrad_core.experiments.sampler import Sampler

H100 = {
    "name": "NVIDIA H100 80GB HBM3", "total": 81_559 * 2**20, "used": 61_000 * 2**20, "utilization": 0, "temperature": 64,
    "slowdown": 87, "milliwatts": 612_345, "limit_milliwatts": 700_000, "mhz": 1755, "max_mhz": 1980,
    "reasons": pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown, "ecc": 0,
}  # fmt: skip
CARDS: dict[str, dict[str, Any]] = {"GPU-b": {"name": "a card in a container"}, "GPU-a": H100}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml(CARDS)
    monkeypatch.setitem(sys.modules, "pynvml", module)  # type: ignore[arg-type]
    return module


def test_the_fake_has_the_names_of_the_real_module() -> None:
    names = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    assert len(names) == 14
    assert all(callable(getattr(pynvml, name)) for name in names)


def test_gpus_are_found_by_uuid_and_every_field_is_read(fake: FakeNvml) -> None:
    reader = NvmlReader(["GPU-a"], node="here", first_rank=4)
    (facts,) = reader.gpus
    assert facts == Gpu(
        rank=4, node="here", uuid="GPU-a", name=H100["name"], total_mib=81_559, slowdown_c=87, power_limit_w=700,
        sm_max_mhz=1980,
    )  # fmt: skip
    (sample,) = reader.sample()
    assert sample == GpuSample(
        rank=4, used_mib=61_000, utilization=0, temperature_c=64, power_w=612.3, sm_mhz=1755,
        throttle=["power cap", "hardware thermal"], ecc=0,
    )  # fmt: skip
    reader.close()
    assert fake.shut_down


def test_what_a_card_does_not_say_is_none_and_not_in_the_event(fake: FakeNvml) -> None:
    reader = NvmlReader(["GPU-b"], node="here")
    assert as_facts(reader.gpus[0]) == {"rank": 0, "node": "here", "uuid": "GPU-b", "name": "a card in a container"}
    assert as_facts(reader.sample()[0]) == {"rank": 0}


def test_every_throttle_reason_has_a_name(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = [value for name, value in vars(pynvml).items() if name.startswith("nvmlClocksEventReason")]
    bits = sorted({bit for bit in bits if bit and bit.bit_count() == 1})
    for bit in bits:
        monkeypatch.setitem(H100, "reasons", bit)
        (sample,) = NvmlReader(["GPU-a"], node="here").sample()
        assert sample.throttle is not None
        assert len(sample.throttle) == 1


def test_why_there_is_no_nvml(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NvmlUnavailable, match="Not Found"):
        NvmlReader(["GPU-c"], node="here")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    with pytest.raises(NvmlUnavailable, match="pip install nvidia-ml-py"):
        NvmlReader(["GPU-a"], node="here")


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA driver")
def test_the_real_module_without_a_driver() -> None:
    with pytest.raises(NvmlUnavailable, match="NVML"):
        NvmlReader(["GPU-a"], node="here")


def test_samples_become_events_in_the_training_thread(fake: FakeNvml) -> None:
    events: list[tuple[int, dict[str, Any]]] = []
    sampler = Sampler(NvmlReader(["GPU-a"], node="here"), period_s=0.01)
    emit = sampler.after(lambda event: events.append((threading.get_ident(), event)))
    deadline = time.monotonic() + 10
    with sampler:
        while len(events) < 20 and time.monotonic() < deadline:
            emit({"event": "metrics"})
            time.sleep(0.02)
    assert not [thread for thread in threading.enumerate() if thread.name == "altgrad-sampler"]
    assert fake.shut_down
    assert {thread for thread, _ in events} == {threading.get_ident()}
    kinds = [event["event"] for _, event in events]
    assert kinds[0] == "metrics"
    assert {"host", "gpus"} <= set(kinds)
    run = RunState("r")
    for _, event in events:
        if event["event"] in ("host", "gpus"):
            run.take({"time": 1.0, **event})
    assert run.samples[0].power_w == 612.3
    assert run.host is not None
    assert 0 <= run.host.cpu_percent <= 100
    assert 0 < run.host.process_bytes <= run.host.used_bytes <= run.host.total_bytes
    assert of_facts(HostSample, as_facts(run.host)) == run.host
