"""Which signals end ``altgrad run`` at once: only Ctrl-C after Ctrl-C, a second later."""

from __future__ import annotations

import signal
import types

import pytest

from altgrad_core.experiments import runner

INT, HUP, TERM, KILL = signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL


@pytest.mark.parametrize(
    ("signals", "sent"),
    [
        ([(0.0, INT), (2.0, INT)], [INT, KILL]),
        ([(0.0, INT), (0.5, INT), (0.9, INT)], [INT, INT, INT]),  # a key that bounces
        ([(0.0, INT), (2.0, HUP), (3.0, TERM)], [INT, HUP, TERM]),
        ([(0.0, TERM), (2.0, INT), (4.0, INT)], [TERM, INT, KILL]),
    ],
)
def test_what_the_workers_get(
    monkeypatch: pytest.MonkeyPatch, signals: list[tuple[float, int]], sent: list[int]
) -> None:
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: 100.0 + now[0])
    got: list[int] = []
    worker = types.SimpleNamespace(interrupt=got.append)
    crew = types.SimpleNamespace(running=[types.SimpleNamespace(worker=worker)], received=[])
    with runner._forwarding(crew):
        for now[0], number in signals:
            signal.raise_signal(number)
    assert got == sent
