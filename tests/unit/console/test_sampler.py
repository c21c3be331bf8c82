"""Reading GPUs and host. There is no GPU here: NVML is ``fake_nvml``, with the real module's names and error class."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from fake_nvml import FakeNvml

from altgrad_core.console.state import RunState
from altgrad_core.errors import RunFailed
from altgrad_core.experiments import sampler
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


def sampled(reader: NvmlReader | None, number: int) -> list[tuple[str, dict[str, Any]]]:
    """Return at least so many events of a sampler, with the thread that each came from; nothing else happens."""
    events: list[tuple[str, dict[str, Any]]] = []
    enough = threading.Event()

    def emit(event: dict[str, Any]) -> None:
        events.append((threading.current_thread().name, event))
        if len(events) >= number:
            enough.set()

    with Sampler(reader, emit, period_s=0.01):
        assert enough.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "altgrad-sampler"]
    return events


def test_samples_come_while_a_step_hangs(fake: FakeNvml) -> None:
    """From their own thread: the one that trains says nothing meanwhile."""
    events = sampled(NvmlReader(["GPU-a"], node="here"), 6)
    assert fake.shut_down
    assert {thread for thread, _ in events} == {"altgrad-sampler"}
    assert [event["event"] for _, event in events[:6]] == ["host", "gpus"] * 3
    run = RunState("r")
    for _, event in events:
        run.take({"time": 1.0, **event})
    assert run.samples[0].power_w == 612.3
    assert run.host is not None
    assert 0 <= run.host.cpu_percent <= 100
    assert 0 < run.host.process_bytes <= run.host.used_bytes <= run.host.total_bytes
    assert of_facts(HostSample, as_facts(run.host)) == run.host


def test_a_reading_that_fails_is_told_once_and_tried_again(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever psutil or NVML raise. GPUs that cannot be read are so on the screen: their last sample is no news."""
    reader = NvmlReader(["GPU-a"], node="here")
    outcomes = iter(["well", "broken", "broken"])

    def sample() -> list[GpuSample]:
        if next(outcomes, "well") == "broken":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a name of the driver's")
        return [GpuSample(rank=0, utilization=90)]

    monkeypatch.setattr(reader, "sample", sample)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: 1 / 0)
    events = [event for _, event in sampled(reader, 8)]
    warnings = [event["message"] for event in events if event["event"] == "log"]
    assert [text.partition(":")[0] for text in warnings] == ["Could not read the host", "Could not read the GPUs"]
    assert "ZeroDivisionError" in warnings[0]
    read = [len(event["samples"]) for event in events if event["event"] == "gpus"]
    assert read[:4] == [1, 0, 0, 1]


def test_a_log_that_takes_nothing_is_left_to_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    """A full disk: the thread that trains meets it, too, and says so; when there is room again, samples go on."""
    tried = threading.Semaphore(0)

    def emit(event: dict[str, Any]) -> None:
        tried.release()
        raise RunFailed("no space left")

    with Sampler(None, emit, period_s=0.01):
        assert all(tried.acquire(timeout=10) for _ in range(3))
    assert capfd.readouterr().err == ""


def test_a_driver_that_hangs_does_not_keep_the_run_from_ending(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_PATIENCE_S", 0.1)
    reader, hanging, end = NvmlReader(["GPU-a"], node="here"), threading.Event(), threading.Event()

    def sample() -> list[GpuSample]:
        hanging.set()
        end.wait(30)
        return []

    monkeypatch.setattr(reader, "sample", sample)
    with Sampler(reader, lambda event: None, period_s=0.01):
        assert hanging.wait(10)
    assert not fake.shut_down, "not while somebody is within"
    end.set()
