"""Saving while training goes on: a consistent copy of the state on the host, and a thread that does the slow rest.

A training step waits only for the copy. The copy's memory is allocated once and used again, so that saving neither grows
nor fragments memory as training goes on; the price is the size of one checkpoint on the host. There is one copy and one
thread: a save that begins while another is running waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class HostCopy:
    """Tensors copied to the host, in buffers that are kept for the next copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return contiguous copies on the CPU, complete on return; the next call overwrites them.

        Copies of CUDA tensors lie in pinned memory, where the transfers run one behind the other without waiting.
        """
        copies = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        self._buffers = copies
        return dict(copies)


class BackgroundJob(Generic[T]):
    """At most one call at a time, in a thread of its own; what it returned or raised is fetched by the caller's thread.

    The interpreter waits for the thread before it ends, so a job is never cut off half-way by an ordinary exit.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        """Seconds that ``result`` has waited since ``start``."""
        self._future: Future[T] | None = None

    @property
    def idle(self) -> bool:
        """Whether no job is running or waits to be fetched."""
        return self._future is None

    def start(self, job: Callable[[], T]) -> None:
        """Begin ``job``; the one before must have been fetched."""
        assert self.idle
        future: Future[T] = Future()
        self._future, self.waited_s = future, 0.0

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="altgrad-checkpoint").start()

    def result(self, *, wait: bool) -> T | None:
        """Return what the job returned, or raise what it raised, once; None when there is nothing (yet)."""
        if self._future is None or not (wait or self._future.done()):
            return None
        future, self._future = self._future, None
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s = time.perf_counter() - started
