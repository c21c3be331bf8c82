"""The built-in sinks through the public suite."""

from __future__ import annotations

from sink_suites import AimConformance, CsvConformance


class TestCsv(CsvConformance):
    pass


class TestAim(AimConformance):
    pass
