"""The wheel's python backend goes through a shell; a workspace may lie in a folder that a shell would split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.server import LocalServer
from tests.graphs import stage

pytestmark = pytest.mark.triton


def test_a_folder_with_spaces_and_quotes_is_served(tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    folder = tmp_path / 'a user\'s "shop"'
    repository = ModelRepository(folder / "repository")
    folder.mkdir()
    stage(repository, folder, 1, 2)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        with Endpoint(server.start().access) as endpoint:
            endpoint.switch(repository, 2)
            endpoint.golden_check(repository, 2)
            assert endpoint.active() == (2,)
    finally:
        server.stop()
    assert {path.name for path in (folder / "state").iterdir()} == {
        "triton.lock",
        "triton.log",
        "triton.token",
        "triton.control-token",
    }
