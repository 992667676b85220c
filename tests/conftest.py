"""Options of tests that kill: how many kills have to hit, and where the counts go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import Kills


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="kills that have to hit, of each operation (make soak: 20)")
    parser.addoption("--kills-record", type=Path, help="file that their counts are appended to, as JSON lines")


@pytest.fixture
def kills(request: pytest.FixtureRequest, tmp_path: Path) -> Kills:
    """Kills of operations, in a folder of the test's own."""
    return Kills(request.config.getoption("--kills"), tmp_path / "kills", request.config.getoption("--kills-record"))
