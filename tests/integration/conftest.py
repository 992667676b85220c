"""Servers of integration tests: Triton from its wheel on ports chosen at run time, Prefect's test server, and pages."""

from __future__ import annotations

import itertools
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.orchestrator.isolation import prepare_prefect
from serving.errors import BadEnvironment
from serving.repository.repository import ModelRepository
from serving.server.environment import Environment, inspect
from serving.server.server import LocalServer
from tests.clients import Upstream
from tests.graphs import write_versions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
PORTS = ("http_port", "grpc_port", "metrics_port")
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
NEXT_PORT = itertools.count(10_000 + 5_000 * (WORKER % 4) + random.randrange(2_000))
# Files that take minutes come first, so that no core is left with one of them at the end.
LONG = ("test_schedule.py", "test_workers.py", "test_pools.py", "test_machines.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_configure(config: pytest.Config) -> None:
    """Sets Prefect's environment early, because an import of Prefect reads it, perhaps while tests are collected."""
    home = tempfile.TemporaryDirectory(prefix="cleanshelf-prefect-")
    config.add_cleanup(home.cleanup)
    prepare_prefect(Path(home.name))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Runs one Prefect server, with its own database, for all flows of this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """Triton's private environment: CLEANSHELF_TRITON_ENV, or .venv-triton in the root of the git repository."""
    path = Path(os.environ.get("CLEANSHELF_TRITON_ENV", ROOT / ".venv-triton"))
    try:
        return inspect(path)
    except BadEnvironment as error:
        pytest.skip(f"no environment for Triton: {error}")


@pytest.fixture(scope="session")
def local_server(triton_environment: Environment) -> Callable[..., LocalServer]:
    """Makes a LocalServer of a model repository and a state directory, on free ports by default; does not start it."""

    def make(repository: Path, state: Path, **ports: int) -> LocalServer:
        return LocalServer(repository, state, triton_environment.path, **{**free_ports(), **ports})

    return make


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Upstream]:
    """Running server with model version 1, for tests of the client."""
    folder = tmp_path_factory.mktemp("upstream")
    repository = ModelRepository(folder / "repository")
    write_versions(repository, folder, 1)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        yield Upstream(repository, server, server.start())
    finally:
        server.stop()


@pytest.fixture(scope="module")  # a longer one would keep its event loop from the tests of other modules
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    from browser.chromium import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with label issues."""
    from tests.cleaned import cleaned_workspace

    return cleaned_workspace(tmp_path_factory.mktemp("pages")).root


@pytest.fixture(scope="module")
def address(shop: Path) -> Iterator[str]:
    """Address of the pages of the workspace."""
    from browser.chromium import served_pages

    with served_pages(shop) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose script errors fail the test."""
    errors: list[str] = []
    page = browser.new_page(base_url=address)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def free_ports() -> dict[str, int]:
    """Free ports below the kernel's ephemeral range, from a range that only this test process uses."""
    found: list[int] = []
    while len(found) < len(PORTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := next(NEXT_PORT)))
            found.append(port)
    return dict(zip(PORTS, found, strict=True))
