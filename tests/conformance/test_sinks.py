"""The built-in sinks through the public suite."""

from __future__ import annotations

import importlib.util

import pytest
from sink_suites import AimConformance, CsvConformance, TensorBoardConformance, WandbConformance


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"pip install 'altgrad[{package}]' (Aim: for Python before 3.13)")


class TestCsv(CsvConformance):
    pass


@needs("tensorboard")
class TestTensorBoard(TensorBoardConformance):
    pass


@pytest.mark.slow
@needs("wandb")
class TestWandb(WandbConformance):
    pass


@pytest.mark.slow
@needs("aim")
class TestAim(AimConformance):
    pass
