"""Beginning a W&B run from the thread of a sink: silent, in bounded time, and offline where no server answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import wandb
from wandb import env

ANSWER_S = 5.0
"""How long a server may take to answer at all: at the end of a short run a sink has 10 s for what it is doing."""
INIT_S = 30.0
"""How long one that answers may take to begin a run."""
FINISH_S = 40.0
"""How long the last rows and files of a run may take to get to the server; sinks have 60 s to close."""

_one_by_one = threading.Lock()  # W&B's set-up of a process is not made for several threads


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other threads and other processes out of W&B's set-up of this process.

    W&B hands its service on to child processes in the environment. The service of a parent, such as a script that uses W&B
    itself, would outlive a worker that is killed, and keep its run from being gone on with.
    """
    with _one_by_one:
        inherited = os.environ.pop(env.SERVICE, None)
        try:
            yield
        finally:
            os.environ.pop(env.SERVICE, None)
            if inherited is not None:
                os.environ[env.SERVICE] = inherited


@attrs.frozen(kw_only=True)
class Connection:
    """A W&B run that has begun."""

    run: wandb.Run
    """It; online or offline."""
    problem: str = ""
    """Why it is offline although it was to be online; empty when it is what it was to be."""

    @property
    def folder(self) -> Path:
        """Where W&B keeps all that it is told, uploaded or not."""
        return Path(self.run.sync_dir)

    def silence(self) -> str:
        """Return why the server does not answer now; empty when it does, or when none is needed."""
        return "" if self.run.offline else _silence(self.run.settings.base_url)


def mode() -> Literal["online", "offline", "disabled"]:
    """Return what W&B itself is set to, by ``WANDB_MODE`` or ``wandb offline``."""
    with _alone():
        set_to = _setup().settings.mode
    if set_to in ("offline", "dryrun"):
        return "offline"
    return "disabled" if set_to == "disabled" else "online"


def connect(*, online: bool, run_id: str, run_folder: Path, **about: Any) -> Connection:
    """Begin the run, or go on with it where the server knows it; ``about`` are further arguments of ``wandb.init``.

    What W&B kept of earlier stretches of the run is removed: the caller repeats what of it is not on the server.
    """
    with _alone():
        problem = ""
        arguments = {**about, "id": run_id, "dir": os.environ.get("WANDB_DIR") or run_folder.resolve()}
        if online:
            run, problem = _online(arguments)
        if not online or problem:
            # Never with resume: the steps of an offline run that resumes another are renumbered by the upload.
            run = _init(arguments, mode="offline")
    connection = Connection(run=run, problem=problem)
    for earlier in connection.folder.parent.glob(f"*run-*-{run_id}*"):
        if earlier != connection.folder:
            shutil.rmtree(earlier, ignore_errors=True)
    return connection


def _online(arguments: dict[str, Any]) -> tuple[Any, str]:
    """Return the run, or why there is none."""
    settings = _setup().settings
    if problem := _silence(settings.base_url):
        return None, f"{settings.base_url} does not answer ({problem})"
    set_to, settings.mode = settings.mode, "online"  # W&B finds no key while WANDB_MODE is offline
    try:
        if not wandb.login(prompt=False, verify=False):
            return None, "there is no W&B API key (`wandb login`, or WANDB_API_KEY)"
        return _init(arguments, mode="online", resume="allow"), ""
    except wandb.Error as error:
        return None, str(error).partition("\n")[0]
    finally:
        settings.mode = set_to


def _silence(url: str) -> str:
    """Return why nothing answers at ``url``, empty when something does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_S).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except urllib.error.URLError as error:
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error)
    return ""


def _init(arguments: dict[str, Any], **more: Any) -> wandb.Run:
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        label_disable=True,  # it is looked for in the text of the main program
        x_save_requirements=False,
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        finish_timeout_raises=True,
    )
    return wandb.init(**arguments, **more, reinit="create_new", settings=settings)


def _setup() -> Any:
    # A run's own setting silences only a part of what W&B prints.
    return wandb.setup(settings=wandb.Settings(silent=True))
