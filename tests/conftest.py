"""Options of tests that kill processes: the number of kills, and the file that records them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import Kills


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="kills that have to hit each operation (make soak: 20)")
    parser.addoption("--kills-record", type=Path, help="file to which the counts of kills are appended, as JSON lines")


@pytest.fixture
def kills(request: pytest.FixtureRequest, tmp_path: Path) -> Kills:
    """Kills operations in a folder of the test."""
    return Kills(request.config.getoption("--kills"), tmp_path / "kills", request.config.getoption("--kills-record"))
