"""``CheckpointConformance``: what a run expects of a checkpoint backend, as a class of pytest tests to subclass.

A backend is judged by what another one, built anew on the same folder, finds there: after a save, after its process was
killed at every operation on the file system, after a disk was full, after bytes have changed.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from altgrad_core.errors import RunFailed
from altgrad_core.plugins import installed
from altgrad_core.testing.checkpointkiller import SCENARIOS, Backends, kill_at_every_operation, save_elsewhere
from altgrad_core.testing.checkpointstates import every_kind, ordinary, same_content
from altgrad_core.testing.counting import CountedSuite
from altgrad_core.training.checkpoint import CheckpointBackend, Content, DamagedCheckpoint, Saved

CLAUSES = {
    "files": "what is stored lies in files below the folder, where the suite can damage it",
    "full_disk": "the store is files that this process writes, so that a limit on their size stands for a full disk",
}
"""What ``cannot`` may switch off; everything else holds for every backend."""

_FULL_AT = (0, 1, 200, 2000)
# Saving once more after each kill would take most of the time.
_GOES_ON_AFTER = 8


class CheckpointConformance(CountedSuite):
    """Subclass it, say which backend, and pytest finds the tests.

    Class and file must be importable without pytest's help, since some checks kill a process that uses the backend.
    """

    clauses: ClassVar[Mapping[str, str]] = CLAUSES
    kind: ClassVar[str] = ""
    """The name under which a plugin registers the backend, as in ``checkpoint.backend``."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options, as in ``experiments.toml``."""

    @classmethod
    def _look_up(cls) -> None:
        if cls.kind:
            installed().get("checkpoint", cls.kind)

    def build(self, folder: Path) -> CheckpointBackend:
        """Return the backend that stores in ``folder``, which may not be there yet; override it for one without a name."""
        extension = installed().get("checkpoint", self.kind)
        backend: CheckpointBackend = extension.value(extension.options(**self.options), folder)
        return backend

    def test_round_trip(self, tmp_path: Path) -> None:
        """Every dtype, shape, NaN and text comes back bit for bit, from a backend that knows the folder alone."""
        folder, content = tmp_path / "checkpoints", every_kind()
        before = every_kind()
        saved = self._save(folder, "step-000001", content)
        assert not same_content(content, before), (
            f"save() has changed what it was given: {same_content(content, before)}"
        )
        self._check(folder, "step-000001", before, saved)

    def test_another_process(self, tmp_path: Path) -> None:
        """What one process has saved another one finds, to the last bit: what is not in the store is lost."""
        folder = tmp_path / "checkpoints"
        saved = save_elsewhere(self, folder, "step-000001", seed=2)
        self._check(folder, "step-000001", every_kind(seed=2), saved)

    def test_an_empty_state(self, tmp_path: Path) -> None:
        """A state without tensors is one, too."""
        content = Content(tensors={}, state={}, notes={})
        saved = self._save(tmp_path, "step-000000", content)
        self._check(tmp_path, "step-000000", content, saved)

    def test_what_is_told(self, tmp_path: Path) -> None:
        """``Saved`` has the name, the size and the time; what is told while saving are bytes that grow."""
        told: list[int] = []
        content = ordinary(1)
        saved = self.build(tmp_path).save("step-000001", content, told.append)
        size = sum(tensor.numel() * tensor.element_size() for tensor in content.tensors.values())
        assert saved.name == "step-000001", f"saved as step-000001, told as {saved.name!r}"
        assert saved.bytes >= size, f"{size} bytes of tensors cannot take {saved.bytes}"
        assert saved.saved_at > 1.7e9, f"saved_at is Unix time, got {saved.saved_at!r}"
        assert told == sorted(told), f"the bytes written so far went down: {told}"
        self.count += 4

    def test_hash_of_the_state(self, tmp_path: Path) -> None:
        """Equal for equal states, whatever the notes; another one for any other state."""
        base = ordinary(1)
        hashes = [self._save(tmp_path / "0", "step-000001", base).state_hash]
        same = Content(tensors=base.tensors, state=base.state, notes={"sinks": {"csv": 7}})
        assert self._save(tmp_path / "1", "step-000009", same).state_hash == hashes[0], (
            "equal states have different state_hash: notes, name or time have a part in it"
        )
        others = {
            f"a bit of {name}": {**base.tensors, name: torch.where(tensor == tensor.max(), tensor + 1, tensor)}
            for name, tensor in base.tensors.items()
        }
        name, tensor = next(iter(base.tensors.items()))
        others |= {
            "a tensor's shape": {**base.tensors, name: tensor.reshape(-1)},
            "a tensor's dtype": {**base.tensors, name: tensor.view(torch.int32)},
            "a tensor's name": {(f"{n}x" if n == name else n): t for n, t in base.tensors.items()},
        }
        for number, (what, tensors) in enumerate(others.items()):
            content = Content(tensors=tensors, state=base.state, notes=base.notes)
            found = self._save(tmp_path / f"t{number}", "step-000001", content).state_hash
            assert found not in hashes, f"{what} is another one, the state_hash is not"
            hashes.append(found)
        content = Content(tensors=base.tensors, state={**base.state, "step": 2}, notes=base.notes)
        assert self._save(tmp_path / "s", "step-000001", content).state_hash not in hashes, "a number is another one"
        self.count += len(hashes) + 1

    def test_names(self, tmp_path: Path) -> None:
        """The complete ones, in the order of their steps, also beyond a million."""
        backend = self.build(tmp_path / "checkpoints")
        assert backend.names() == [], f"nothing is saved yet, names() says {backend.names()}"
        expected = ["step-000002", "step-000010", "step-999999", "step-1000000"]
        for name in ("step-000010", "step-1000000", "step-000002", "step-999999"):
            backend.save(name, ordinary(1), _silent)
        for found in (backend.names(), self.build(tmp_path / "checkpoints").names()):
            assert found == expected, f"names() is {found}, oldest first is {expected}"
            self.count += 1

    def test_replace(self, tmp_path: Path) -> None:
        """A name that is saved again holds the new state, all of it and nothing else."""
        for content in (ordinary(1), every_kind(), ordinary(2)):
            saved = self._save(tmp_path, "step-000001", content)
            self._check(tmp_path, "step-000001", content, saved)
        found = self.build(tmp_path).names()
        assert found == ["step-000001"], f"names() is {found} after the same name was saved twice"

    def test_delete(self, tmp_path: Path) -> None:
        """One is gone, the others stay; deleting what is not there is an ``OSError``."""
        saved = [self._save(tmp_path, f"step-{step:06d}", ordinary(step)) for step in (1, 2, 3)]
        self.build(tmp_path).delete("step-000002")
        assert self.build(tmp_path).names() == ["step-000001", "step-000003"], "deleted, or others with it"
        self._refused(tmp_path, "step-000002", "it was deleted")
        for step in (1, 3):
            self._check(tmp_path, f"step-{step:06d}", ordinary(step), saved[step - 1])
        with pytest.raises(OSError):  # noqa: PT011  any of them
            self.build(tmp_path).delete("step-000002")

    def test_pointers(self, tmp_path: Path) -> None:
        """Each pointer names what it was last set to, for every backend on that folder; None before."""
        for step in (1, 2):
            self._save(tmp_path, f"step-{step:06d}", ordinary(step))
        for latest, best in (("step-000001", None), ("step-000001", "step-000001"), ("step-000002", "step-000001")):
            backend = self.build(tmp_path)
            for pointer, name in (("latest", latest), ("best", best)):
                if name is not None:
                    backend.point(pointer, name)
            found = tuple(self.build(tmp_path).pointed(pointer) for pointer in ("latest", "best"))
            assert found == (latest, best), f"the pointers are {found}, they were set to {(latest, best)}"
            self.count += 1
        assert self.build(tmp_path).names() == ["step-000001", "step-000002"], "a pointer is no checkpoint"

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        """A name that was never saved is a ``DamagedCheckpoint``."""
        self._refused(tmp_path / "checkpoints", "step-000001", "it was never saved")
        self._save(tmp_path / "checkpoints", "step-000001", ordinary(1))
        self._refused(tmp_path / "checkpoints", "step-000002", "it was never saved")

    def test_loaded_tensors_are_the_caller_s(self, tmp_path: Path) -> None:
        """On the CPU; and training on with them does not change what is stored."""
        saved = self._save(tmp_path, "step-000001", ordinary(1))
        content, _ = self.build(tmp_path).load("step-000001")
        for tensor in content.tensors.values():
            assert tensor.device.type == "cpu", f"a loaded tensor is on {tensor.device}"
            tensor.zero_()
        self._check(tmp_path, "step-000001", ordinary(1), saved)

    def test_damage_is_found(self, tmp_path: Path) -> None:
        """A bit, a byte less, a byte more, a file less: ``verify`` and ``load`` say so; and the others are whole."""
        self.needs("files")
        first = self._save(tmp_path, "step-000001", ordinary(1))
        before = {path: path.read_bytes() for path in _files(tmp_path)}
        self._save(tmp_path, "step-000002", ordinary(2))
        files = {p: p.read_bytes() for p in _files(tmp_path) if before.get(p) != p.read_bytes()}
        assert files, "save() has changed no file below the folder"
        for path, whole in files.items():
            for what, damaged in _damages(whole):
                if damaged is None:
                    path.unlink()
                else:
                    path.write_bytes(damaged)
                self._refused(tmp_path, "step-000002", f"{path.relative_to(tmp_path)} has {what}", describe=False)
                path.write_bytes(whole)
        self.build(tmp_path).verify("step-000002")
        self._check(tmp_path, "step-000001", ordinary(1), first)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        """Loading runs no code of the checkpoint's: no class is looked up for a pickle."""
        self._save(tmp_path, "step-000001", every_kind())
        with _no_pickle():
            self.build(tmp_path).load("step-000001")
        self.count += 1

    def test_killed(self, tmp_path: Path) -> None:
        """Killed before any operation on the file system: what was whole is whole, a half one is none, and it goes on."""
        self.needs("files")
        kills = kill_at_every_operation(self, tmp_path)
        for scenario in SCENARIOS:
            folders = kills[scenario]
            assert folders, f"{scenario}: no operation on a file was seen, and so nothing was killed"
            for number, folder in enumerate(folders):
                where = f"{scenario}, killed before operation {number} of {len(folders)}"
                backend = self.build(folder)
                for name in backend.names():
                    backend.verify(name)
                backend.clean()
                self._after_a_kill(self.build(folder), scenario, where)
                if number % _GOES_ON_AFTER == 0:
                    saved = self._save(folder, "step-000003", ordinary(3))
                    self._check(folder, "step-000003", ordinary(3), saved)

    def _after_a_kill(self, backend: CheckpointBackend, scenario: str, where: str) -> None:
        """Check what a run finds that goes on: 1 and 2 were saved, and 2 is what the killed process was busy with."""
        names, latest = backend.names(), backend.pointed("latest")
        allowed = {
            "save": [["step-000001"], ["step-000001", "step-000002"]],
            "replace": [["step-000001", "step-000002"]],
            "delete": [["step-000001"], ["step-000001", "step-000002"]],
            "point": [["step-000001", "step-000002"]],
        }[scenario]
        assert names in allowed, f"{where}: names() is {names}, expected one of {allowed}"
        pointers = ["step-000001", "step-000002"] if scenario == "point" else ["step-000001"]
        assert latest in pointers, f"{where}: 'latest' is {latest!r}, expected one of {pointers}"
        wrong = same_content(backend.load("step-000001")[0], ordinary(1))
        assert not wrong, f"{where}: step-000001 was whole, and now {wrong}"
        if "step-000002" in names:
            found = backend.load("step-000002")[0]
            states = (ordinary(2), ordinary(7)) if scenario == "replace" else (ordinary(2),)
            wrongs = [same_content(found, state) for state in states]
            assert "" in wrongs, f"{where}: step-000002 is neither the old nor the new one: {wrongs}"
        self.count += 1

    @pytest.mark.parametrize("size", _FULL_AT)
    def test_a_full_disk(self, tmp_path: Path, size: int) -> None:
        """``RunFailed``; nothing of the earlier ones is lost, no half one is there, and it goes on when there is room."""
        self.needs("full_disk")
        first = self._save(tmp_path, "step-000001", ordinary(1))
        self.build(tmp_path).point("latest", "step-000001")
        backend = self.build(tmp_path)
        with _limited(size):
            try:
                backend.save("step-000002", ordinary(2), _silent)
            except RunFailed:
                self.count += 1
            except Exception as error:
                raise AssertionError(f"a full disk is a RunFailed, got {type(error).__name__}: {error}") from error
            else:
                raise AssertionError(f"save() did not raise, though no file could be longer than {size} bytes")
        found = self.build(tmp_path)
        assert found.names() == ["step-000001"], f"names() is {found.names()} after a save that failed"
        assert found.pointed("latest") == "step-000001", "a save that failed has moved a pointer"
        self._check(tmp_path, "step-000001", ordinary(1), first)
        saved = self._save(tmp_path, "step-000002", ordinary(2))
        self._check(tmp_path, "step-000002", ordinary(2), saved)

    def test_others_look_on(self, tmp_path: Path) -> None:
        """While one thread saves and deletes, ``names`` gives complete checkpoints to whoever asks."""
        backend, over, raised = self.build(tmp_path), threading.Event(), list[Exception]()
        self._save(tmp_path, "step-000001", ordinary(1))

        def save() -> None:
            try:
                for step in range(2, 14):
                    backend.save(f"step-{step:06d}", ordinary(step), _silent)
                    backend.point("latest", f"step-{step:06d}")
            except Exception as error:
                raised.append(error)
            over.set()

        thread = threading.Thread(target=save)
        thread.start()
        while not over.is_set():
            other = self.build(tmp_path)
            for name in other.names():
                other.describe(name)
            assert other.pointed("latest") in (None, *other.names()), "'latest' names what is not complete"
            self.count += 1
        thread.join()
        assert not raised, f"save() raised {raised}"

    def _save(self, folder: Path, name: str, content: Content) -> Saved:
        return self.build(folder).save(name, content, _silent)

    def _check(self, folder: Path, name: str, content: Content, saved: Saved) -> None:
        """Compare what a new backend finds with what was saved."""
        backend = self.build(folder)
        found, told = backend.load(name)
        wrong = same_content(found, content)
        assert not wrong, f"{name} came back otherwise: {wrong}"
        for what, other in (("load", told), ("describe", backend.describe(name)), ("verify", backend.verify(name))):
            assert other == saved, f"{what}() tells {other}, save() told {saved}"
        self.count += len(content.tensors) + 4

    def _refused(self, folder: Path, name: str, why: str, *, describe: bool = True) -> None:
        backend = self.build(folder)
        for method in ("verify", "load", *(("describe",) if describe else ())):
            try:
                getattr(backend, method)(name)
            except DamagedCheckpoint:
                self.count += 1
            except Exception as error:
                raise AssertionError(f"{why}: {method}() raised {type(error).__name__}: {error}") from error
            else:
                raise AssertionError(f"{why}: {method}() did not raise DamagedCheckpoint")


def _silent(written: int) -> None:
    del written


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _damages(whole: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield what may become of a file: None for none."""
    for place in sorted({0, len(whole) // 3, len(whole) // 2, 2 * len(whole) // 3, len(whole) - 1}) if whole else ():
        yield f"a bit flipped in byte {place}", whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    if whole:
        yield "a byte less", whole[:-1]
        yield "nothing in it", b""
    yield "a byte more", whole + b"\n"
    yield "gone", None


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, with the error that a full disk gives."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


_watching = threading.local()


def _pickle_hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and getattr(_watching, "on", False):
        raise AssertionError(f"load() unpickles {arguments[0]}.{arguments[1]}: a checkpoint would run its code")


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    if not getattr(_watching, "hooked", False):
        sys.addaudithook(_pickle_hook)  # for good: there is no way to remove one
        _watching.hooked = True
    _watching.on = True
    try:
        yield
    finally:
        _watching.on = False


_: type[Backends] = CheckpointConformance
