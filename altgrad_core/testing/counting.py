"""What a conformance suite of classes to subclass needs: clauses that can be switched off, and counts of what was checked.

A green run in which nothing was checked is the trap of such suites: a test that passes without a check fails, and a line for
each class says how much was checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar, NoReturn

import pytest

from altgrad_core.errors import AltgradError


class _Summary:
    """A plugin of pytest that prints a line for each class at the end."""

    NAME = "altgrad conformance"

    def __init__(self) -> None:
        self.lines: list[str] = []

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("conformance")
        for line in self.lines:
            terminalreporter.write_line(line)


class CountedSuite:
    """Base of a suite. Its tests add to ``count`` what they have checked."""

    clauses: ClassVar[Mapping[str, str]] = {}
    """What ``cannot`` may switch off, in words."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """Clauses that what is under test does not keep, each with the reason; their tests are shown as skipped."""

    count = 0
    """Checks of the running test so far."""
    _is_off = False
    _counts: ClassVar[Counter[str]] = Counter()  # test -> its checks

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        try:
            cls._look_up()
        except AltgradError as error:
            raise AltgradError(
                f"{cls.__name__}: {error} If it is this package that offers it, install it first: pip install -e ."
            ) from None

    @classmethod
    def _look_up(cls) -> None:
        """Raise ``AltgradError`` if there is nothing of the name under test: once, rather than in each test."""

    def needs(self, clause: str) -> None:
        """Skip the rest of the test if the clause is switched off."""
        if clause in self.cannot:
            self.switch_off(self.cannot[clause])

    def switch_off(self, reason: str) -> NoReturn:
        """Skip the rest of the test."""
        self._is_off = True
        pytest.skip(reason)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        """Have it said at the end of the run what was checked and what was not."""
        cls._counts = Counter()
        yield
        plugins = request.config.pluginmanager
        summary = plugins.get_plugin(_Summary.NAME)
        if summary is None:
            summary = _Summary()
            plugins.register(summary, _Summary.NAME)
        off = "".join(f"; not {clause}: {reason}" for clause, reason in cls.cannot.items())
        summary.lines.append(f"{cls.__name__}: {cls._counts.total()} checks in {len(cls._counts)} tests{off}")

    @pytest.fixture(autouse=True)
    def _counted(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Fail a test that passed and has checked nothing."""
        unknown = set(self.cannot) - set(self.clauses)
        assert not unknown, f"cannot: unknown clause {', '.join(sorted(unknown))}; known: {', '.join(self.clauses)}"
        failed = request.session.testsfailed
        yield
        interrupted = request.session.exitstatus is pytest.ExitCode.INTERRUPTED
        passed = request.session.testsfailed == failed and not self._is_off and not interrupted
        assert self.count or not passed, "this test has checked nothing"
        if self.count:
            self._counts[request.node.name] += self.count
