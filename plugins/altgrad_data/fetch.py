"""Download a file into the cache, once."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import Workspace

_TIMEOUT_S = 30.0
_SAY_EVERY_S = 5.0
_CHUNK_BYTES = 1 << 20


def is_url(path: str) -> bool:
    """Return whether ``path`` is an http or https URL."""
    return path.lower().startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """Return the last part of the URL's path."""
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name


def fetch(url: str, workspace: Workspace) -> Path:
    """Return the downloaded file; one that is in the cache already is not asked for again."""
    folder = workspace.cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:20]
    target = folder / file_name(url)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        _download(url, handle, workspace)
        os.replace(temporary, target)
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        raise AltgradError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). Download it elsewhere, copy it to this "
            f"machine, and set data.path to the file; or put it where it is looked for: {target}"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _download(url: str, handle: int, workspace: Workspace) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "altgrad"})
    with os.fdopen(handle, "wb") as file, urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        of = f" of {total / 1e6:.1f}" if total else ""
        workspace.say(f"Downloading {url} ({total / 1e6:.1f} MB)" if total else f"Downloading {url}")
        done, said = 0, time.monotonic()
        while chunk := answer.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if time.monotonic() - said > _SAY_EVERY_S:
                workspace.say(f"  {done / 1e6:.1f}{of} MB")
                said = time.monotonic()
        if total and done != total:
            raise OSError(f"the connection ended after {done} of {total} bytes")
