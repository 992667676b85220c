"""The servers of integration tests: Triton from its wheel on ports chosen when the tests run, and Prefect's own."""

from __future__ import annotations

import itertools
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flows.orchestrator.events import prepare_prefect
from serving.errors import BadEnvironment
from serving.repository.repository import ModelRepository
from serving.server.environment import Environment, inspect
from serving.server.server import LocalServer
from tests.clients import Upstream
from tests.graphs import stage

ROOT = Path(__file__).parents[2]
PORTS = ("http_port", "grpc_port", "metrics_port")
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
NEXT_PORT = itertools.count(10_000 + 5_000 * (WORKER % 4) + random.randrange(2_000))


def pytest_configure(config: pytest.Config) -> None:
    """Prefect reads the environment when it is imported, which may happen while tests are collected."""
    home = tempfile.TemporaryDirectory(prefix="cleanshelf-prefect-")
    config.add_cleanup(home.cleanup)
    prepare_prefect(Path(home.name))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One server with a database of its own for all flows that run in this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """The server's private environment: CLEANSHELF_TRITON_ENV, or .venv-triton in the repository's root."""
    path = Path(os.environ.get("CLEANSHELF_TRITON_ENV", ROOT / ".venv-triton"))
    try:
        return inspect(path)
    except BadEnvironment as error:
        pytest.skip(f"no environment for Triton: {error}")


@pytest.fixture(scope="session")
def local_server(triton_environment: Environment) -> Callable[..., LocalServer]:
    """A LocalServer of a repository and a state directory, on free ports unless told others; not started."""

    def make(repository: Path, state: Path, **ports: int) -> LocalServer:
        return LocalServer(repository, state, triton_environment.path, **{**free_ports(), **ports})

    return make


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Upstream]:
    """A server for tests of the client."""
    folder = tmp_path_factory.mktemp("upstream")
    repository = ModelRepository(folder / "repository")
    stage(repository, folder, 1)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        yield Upstream(repository, server, server.start())
    finally:
        server.stop()


def free_ports() -> dict[str, int]:
    """Ports below the kernel's ephemeral range, from a range that this test process has for itself."""
    found: list[int] = []
    while len(found) < len(PORTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := next(NEXT_PORT)))
            found.append(port)
    return dict(zip(PORTS, found, strict=True))
