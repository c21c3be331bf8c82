"""The built-in checkpoint backends through the public suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad_core.plugins import installed
from altgrad_core.testing import CheckpointConformance


class TestLocal(CheckpointConformance):
    kind = "local"

    @pytest.mark.slow
    def test_killed(self, tmp_path: Path) -> None:
        super().test_killed(tmp_path)


def test_every_built_in_has_its_suite() -> None:
    assert installed().names("checkpoint") == [TestLocal.kind]
