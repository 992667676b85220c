"""The server of compose.yaml: its own command line, run by the wheel's server instead of NVIDIA's container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from serving.access import Access
from serving.errors import Forbidden
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.environment import Environment
from serving.server.server import LocalServer, _backend_option
from serving.wire import connect, infer
from tests.graphs import golden_images, stage

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
TOKENS = {"CLEANSHELF_TRITON_TOKEN": "asking", "CLEANSHELF_TRITON_CONTROL_TOKEN": "loading"}


def command(environment: Environment, server: LocalServer) -> list[str]:
    """Command of the service `triton`, with our paths, ports and backends."""
    name, *options = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["triton"][
        "command"
    ]
    assert name == "tritonserver"
    text = "\n".join(options).replace("=/models", f"={server.repository}")
    for variable, value in TOKENS.items():
        text = text.replace(f"${{{variable}:?}}", value)
    ports = {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
    here = [f"--{service}-{key}" for service, port in ports.items() for key in (f"port={port}", "address=127.0.0.1")]
    return [str(environment.wheel / "bin" / "tritonserver"), *text.split("\n"), *here, _backend_option(server.state)]


@pytest.fixture
def composed(
    tmp_path: Path, triton_environment: Environment, local_server: Callable[..., LocalServer]
) -> Iterator[tuple[ModelRepository, Access]]:
    """It starts before there is any model."""
    server = local_server(tmp_path / "repository", tmp_path / "state")
    server.repository.mkdir()
    server._install_backends(triton_environment)
    line = command(triton_environment, server)
    pid = process.spawn(line, variables=triton_environment.variables(), log=tmp_path / "log")
    born = str(process.birth(pid))
    access = Access(f"127.0.0.1:{server.grpc_port}", *TOKENS.values())
    with Endpoint(access) as endpoint:
        assert process.until(endpoint.live, timeout_s=60), (tmp_path / "log").read_text()
    yield ModelRepository(server.repository), access
    process.end(pid, born=born, grace_s=35)
    server.stop()


def test_the_first_publication_brings_the_first_model(composed: tuple[ModelRepository, Access], tmp_path: Path) -> None:
    repository, access = composed
    stage(repository, tmp_path, 1, 2)
    with Endpoint(access) as control:
        assert control.active() == ()
        for version in (1, 2):
            control.switch(repository, version)
            assert control.active() == (version,)
    nobody = Access(access.url)
    with connect(nobody) as client, pytest.raises(Forbidden):
        infer(client, golden_images(1), url=nobody.url, model="products", outputs=["ids"], timeout_s=5)
