"""The launcher ``process``: a run is a process of its own on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

from altgrad_core.experiments.folder import RunFolder

WORKER_ENVIRONMENT = {
    # glibc hands blocks of 32 MiB and more back to the system at once, so every large tensor costs page faults; keeping
    # them took a BF16 step of a 30 M parameter GPT on 2 CPU cores from 2.3 to 1.8 s, for a higher peak of memory.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(512 * 2**20),
}


class ProcessWorker:
    """A worker process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def interrupt(self, signal: int) -> None:
        """Send the signal."""
        self._process.send_signal(signal)


class ProcessLauncher:
    """Starts worker processes; what they print goes to ``log.txt`` in the run folder."""

    def start(self, folder: RunFolder, device: str) -> ProcessWorker:
        """Start the worker in a session of its own, so that Ctrl-C reaches it once, through ``altgrad run``."""
        with folder.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "altgrad_core.experiments.worker", str(folder.path)),
                    *("--device", device, "--parent", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**WORKER_ENVIRONMENT, **os.environ},
                start_new_session=True,
            )
        return ProcessWorker(process)
