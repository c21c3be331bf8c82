"""What AltGrad does with an Aim repository: make it, open a run in it, cut a run back, show it to queries.

Aim keeps each run in a RocksDB of its own, which one process writes to, so the runs of a matrix do not meet there. They meet
in what they share: the SQLite file of names, experiments and tags, and the index that queries read. These are written under
a lock that the operating system drops with the process, ``.aim/locks/altgrad``. Tried with Aim 3.29.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altgrad_core.training.events import StateLost

if TYPE_CHECKING:
    from aim import Repo, Run

_UI = "__AIM_UI_MOUNT_REPO_PATH__"  # what `aim up` leaves in the environment of its processes
_INDEX_TRIES, _INDEX_PAUSE_S = 40, 0.25


class Repository:
    """A local repository in the folder ``place``, made when it is not there, or one behind a server, ``aim://host:port``."""

    def __init__(self, place: str) -> None:
        os.environ.setdefault("AIM_TELEMETRY", "0")  # before the import
        from aim import Repo
        from aim.sdk.configs import get_aim_repo_name

        self.is_remote = Repo.is_remote_path(place)
        if self.is_remote:
            self._repo: Repo = Repo.from_path(place)
            return
        place = str(Path(place).expanduser().resolve())
        self._folder = Path(place) / get_aim_repo_name()
        (self._folder / "locks").mkdir(parents=True, exist_ok=True)
        with self.lock():
            # VERSION is the last thing that is made: without it somebody was killed while making the repository.
            self._repo = Repo.from_path(place, init=not (self._folder / "VERSION").exists())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other AltGrad processes from what runs share."""
        if self.is_remote:  # the server's process writes for everybody
            yield
            return
        with (self._folder / "locks" / "altgrad").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def open(self, run_hash: str | None) -> Run:
        """Return a run to write to: a new one, or the one of that hash; ``StateLost`` when there is none."""
        from aim import Run
        from aim.sdk.errors import RunLockingError
        from filelock import Timeout

        options: dict[str, Any] = {
            "repo": self._repo,
            # AltGrad has host and GPU samples and the worker's output itself.
            "system_tracking_interval": None,
            "capture_terminal_logs": False,
        }
        with self.lock():
            if run_hash is None:
                return Run(**options)
            self._check(run_hash)
            try:
                return Run(run_hash, **options)
            except (RunLockingError, Timeout):
                # Left by a process that was killed, perhaps on another machine. That no other writes to it is known by
                # the lock of the run's folder.
                return Run(run_hash, force_resume=True, **options)

    def cut(self, run_hash: str, step: int) -> None:
        """Take away what a run tracked after ``step``; ``StateLost`` when there is no such run.

        Aim overwrites what is tracked at the same step again, but leaves last value, minimum and maximum as they were.
        """
        self._check(run_hash)
        meta = self._repo.request_tree("meta", run_hash, read_only=False).subtree("meta")
        series = self._repo.request_tree("seqs", run_hash, read_only=False).subtree("seqs")
        run = meta.subtree(("chunks", run_hash))
        for context, traces in run.get("traces", {}).items():
            for name, facts in traces.items():
                if facts.get("last_step", step) > step:
                    versioned = ("chunks",) if facts.get("version", 1) == 1 else (f"v{facts['version']}", "chunks")
                    place = (*versioned, run_hash, context, name)
                    kept = _cut_series(series.subtree(place), step)
                    if kept:
                        others = {key: fact for key, fact in facts.items() if key not in ("min", "max")}
                        run["traces", context, name] = {**others, **kept}
                    else:
                        del series[place]
                        del run["traces", context, name]
                        del meta["traces_types", facts["dtype"], context, name]
                        for kind in run["typed_traces"]:
                            del run["typed_traces", kind, context, name]

    def flush(self) -> None:
        """Wait until a server has got everything; a local repository has it already."""
        if self.is_remote:
            self._repo._client.get_queue().wait_for_finish()

    def index(self, run_hash: str) -> str | None:
        """Show a run that is closed to queries; returns why they do not find it.

        Left to ``aim up`` where that runs, since it indexes all the time, and its indexing ends for good if somebody else
        holds the index at that moment. Behind a server it is the server's ``aim up`` that does it.
        """
        import aimrocks.errors
        from aim.sdk.index_manager import RepoIndexManager

        if self.is_remote or ui_runs(self._repo.path):
            return None
        with self.lock():
            for _ in range(_INDEX_TRIES):
                try:
                    RepoIndexManager(self._repo).index(run_hash)
                except (
                    aimrocks.errors.RocksIOError
                ) as error:  # somebody has the index open, such as `aim storage reindex`
                    said = str(error)
                    time.sleep(_INDEX_PAUSE_S)
                else:
                    return None
        return (
            f"the run is in {self._repo.path}, but queries do not find it yet, as the index could not be written ({said}). "
            f"`aim up` mends that, and so does: aim storage --repo {self._folder.parent} reindex"
        )

    def close(self) -> None:
        """Let go of it: Aim gives one object to all who open the same repository in a process."""
        del self._repo

    def _check(self, run_hash: str) -> None:
        """Raise ``StateLost`` when there is no such run: asked for, Aim would make an empty one."""
        if self.is_remote:
            there = self._repo.run_exists(run_hash)
        else:  # Aim's own answer is up to half a second old
            there = (self._folder / "meta" / "chunks" / run_hash).is_dir()
        if not there:
            raise StateLost(f"the Aim run {run_hash} is not in {self._repo.path} any more.")


def _cut_series(series: Any, step: int) -> dict[str, Any]:
    """Delete the values after ``step`` and return what Aim keeps of the others beside them; empty when none is left."""
    steps = dict(series.array("step").items())  # values of metrics lie under a hash of their step
    values = dict(series.array("val").items())
    kept = []
    for key, value in values.items():
        at = steps.get(key, key)
        if at <= step:
            kept.append((at, value))
        else:
            for column in ("step", "val", "epoch", "time"):
                del series[column, key]
    if not kept:
        return {}
    last_step, last = max(kept, key=lambda item: item[0])
    numbers = [value for _, value in kept if isinstance(value, float) and not math.isnan(value)]
    return {"last_step": last_step, "last": last, **({"min": min(numbers), "max": max(numbers)} if numbers else {})}


def ui_runs(path: str) -> bool:
    """Tell whether ``aim up`` runs on this machine for the repository in ``path``."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # of another user, or gone
            if os.path.realpath(process.environ().get(_UI, "")) == os.path.realpath(path):
                return True
    return False
