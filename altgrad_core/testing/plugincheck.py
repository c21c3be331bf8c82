"""Runs the conformance suites on what an installed plugin offers, without a test file of its own.

A test file is written to a temporary folder, with one class for each thing that is checked, and pytest runs it: the same
classes, in the same way, as in a third party's own tests. That file is what processes import which a check kills.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

import altgrad_core.testing
from altgrad_core.plugins import Extension

SUITES = {kind: f"{kind.capitalize()}Conformance" for kind in ("format", "scaling", "sink", "checkpoint")}
"""Kind -> the name of its suite in ``altgrad_core.testing``."""
_UNREAD = "what it stored can be read by its own reader alone: subclass SinkConformance, and say how, in stored()"
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


@attrs.define
class CheckResult:
    """What became of one check; of a parametrized one all of its cases together."""

    name: str
    """The check, such as ``each_element_by_itself``."""
    outcome: str = "passed"
    """``passed``, ``skipped`` or ``failed``; the worst of its cases."""
    checks: int = 0
    """How much was compared."""
    seconds: float = 0.0
    """How long it took."""
    reason: str = ""
    """Why it was skipped, or what failed."""


def check_extension(
    extension: Extension, options: Mapping[str, Any], cannot: Mapping[str, str]
) -> list[CheckResult] | None:
    """Run the suite of the extension's kind on it; None when there is no suite for its kind.

    ``options`` are those of ``experiments.toml``, ``cannot`` clauses to switch off beside those of the plugin's own, with
    the reason; those of other suites are passed over.
    """
    if extension.kind not in SUITES:
        return None
    known = clauses(extension.kind)
    cannot = {clause: why for clause, why in {**extension.cannot, **cannot}.items() if clause in known}
    with tempfile.TemporaryDirectory(prefix="altgrad-check-") as folder:
        file = (
            Path(folder) / f"test_{Path(folder).name.replace('-', '_')}.py"
        )  # a module's name is taken once a process
        file.write_text(_test_file(extension, options, cannot), encoding="utf-8")
        (Path(folder) / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        collector, said = _Collector(), io.StringIO()
        arguments = [str(file), "--rootdir", folder, "-p", "no:cacheprovider", "--basetemp", f"{folder}/tmp", "-q"]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _without("PYTEST_ADDOPTS"):
            status = pytest.main([*arguments, "-c", f"{folder}/pytest.ini"], plugins=[collector])
    if status is pytest.ExitCode.INTERRUPTED and collector.results:
        raise KeyboardInterrupt  # which pytest keeps for itself
    if not collector.results:
        raise RuntimeError(f"pytest ran no check (exit status {status}):\n{said.getvalue()}")
    return list(collector.results.values())


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Take a variable out of the environment for a while: what somebody wants of their own tests is none of this."""
    before = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[variable] = before


def clauses(kind: str) -> Mapping[str, str]:
    """Return what ``cannot`` may switch off in the suite of a kind, in words."""
    found: Mapping[str, str] = getattr(altgrad_core.testing, SUITES[kind]).clauses
    return found


def _test_file(extension: Extension, options: Mapping[str, Any], cannot: Mapping[str, str]) -> str:
    kind, name = extension.kind, extension.name
    suite = SUITES[kind]
    body: Sequence[str]
    if kind == "format":
        body = [f"format = {name!r}"]
    elif kind == "sink":
        cannot = {"stored": _UNREAD, **cannot}
        body = [
            "def build(self, folder):",
            f"    extension = installed().get('sink', {name!r})",
            f"    return extension.value(structure({dict(options)!r}, extension.options), folder)",
            "def stored(self, folder):",
            "    raise AssertionError('switched off')",
        ]
    else:
        body = [f"kind = {name!r}", f"options = {dict(options)!r}"]
    lines = [
        "from altgrad_core.plugins import installed",
        "from altgrad_core.structure import structure",
        f"from altgrad_core.testing import {suite}",
        f"class TestPlugin({suite}):",
        *(f"    {line}" for line in [f"cannot = {dict(cannot)!r}", *body]),
    ]
    return "\n".join(lines) + "\n"


class _Collector:
    """A plugin of pytest that gathers what became of each check."""

    def __init__(self) -> None:
        self.results: dict[str, CheckResult] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        name = getattr(item, "originalname", item.name).removeprefix("test_")
        result = self.results.setdefault(name, CheckResult(name))
        result.seconds += report.duration
        if report.when == "call":
            result.checks += getattr(getattr(item, "instance", None), "count", 0)
        if _RANK[report.outcome] > _RANK[result.outcome] or (not result.reason and report.outcome != "passed"):
            result.outcome = max(result.outcome, report.outcome, key=_RANK.__getitem__)
            result.reason = _reason(report, call)
        return report


def _reason(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    error = call.excinfo.value if call.excinfo is not None else None
    return f"{error}" if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
