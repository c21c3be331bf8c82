"""The built-in sinks through the public suite."""

from __future__ import annotations

import importlib.util

import pytest
from sink_suites import AimConformance, CsvConformance


class TestCsv(CsvConformance):
    pass


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("aim") is None, reason="pip install 'altgrad[aim]'; none for Python 3.13")
class TestAim(AimConformance):
    pass
