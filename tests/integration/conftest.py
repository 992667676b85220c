"""Triton for integration tests: a real server from its wheel, on ports chosen when the tests run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.environment import Environment, inspect
from serving.errors import BadEnvironment
from serving.server import LocalServer

ROOT = Path(__file__).parents[2]


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
        return LocalServer(repository, state, triton_environment.path, **{**_free_ports(), **ports})

    return make


def _free_ports() -> dict[str, int]:
    probes = [socket.socket() for _ in range(3)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        numbers = [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
    return dict(zip(("http_port", "grpc_port", "metrics_port"), numbers, strict=True))
