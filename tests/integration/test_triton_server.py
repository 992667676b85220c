"""Start and stop of a real tritonserver; each test has its server server and checks that nothing of it remains."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from serving.errors import (
    GoldenMismatch,
    ModelNotReady,
    RequestTimeout,
    ServerUnavailable,
)
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.server import LocalServer, running, shared_memory_prefix
from tests.graphs import update_hashes, write_versions

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
MakeServer = Callable[..., LocalServer]


@pytest.fixture
def server(tmp_path: Path, local_server: MakeServer) -> Iterator[LocalServer]:
    repository = ModelRepository(tmp_path / "repository")
    write_versions(repository, tmp_path, 1)
    repository.configure([1])
    local = local_server(repository.root, tmp_path / "state")
    yield local
    local.stop()
    assert remains(local) == []


def remains(server: LocalServer) -> list[str]:
    """Processes and shared memory of this server's state directory, which a start makes."""
    if not server.state.exists():
        return []
    found = [" ".join(argv) for _, argv in process.commands() if any(str(server.state) in word for word in argv)]
    return found + [path.name for path in Path("/dev/shm").glob(f"{shared_memory_prefix(server.state)}*")]


START = """
import sys
from pathlib import Path
from serving.server.server import LocalServer
repository, state, environment, *ports = sys.argv[1:]
server = LocalServer(Path(repository), Path(state), Path(environment), *map(int, ports))
server.start()
print("started", flush=True)
"""
SUPERVISE = """
from serving.server.supervisor import guarded
with guarded(server):
    print("started", flush=True)
    sys.stdin.read()
"""


def start_in_child(server: LocalServer, script: str = START) -> subprocess.Popen[str]:
    paths = [str(path) for path in (server.repository, server.state, server.environment)]
    ports = [str(port) for port in (server.http_port, server.grpc_port, server.metrics_port)]
    return subprocess.Popen(
        [sys.executable, "-c", script, *paths, *ports],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_server_outlives_the_process_that_started_it(server: LocalServer) -> None:
    with start_in_child(server) as child:
        assert (
            child.communicate(timeout=60)[0] == "started\n"
        )  # communicate() ends, as the server does not hold the pipes
    found = running(server.state)
    assert found
    with Endpoint(found.access) as endpoint:
        endpoint.golden_check(ModelRepository(server.repository), 1)
    assert len(remains(server)) >= 2
    server.stop()
    assert remains(server) == []
    assert running(server.state) is None


@pytest.mark.faults
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_supervised_server_ends_with_the_process_that_started_it(server: LocalServer, is_killed: bool) -> None:
    with start_in_child(server, START[: START.index("server.start()")] + SUPERVISE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        assert running(server.state)
        if is_killed:
            child.kill()
        else:
            child.communicate(timeout=60)
            assert remains(server) == [], "the parent waits for the server and its supervisor"
    assert process.until(lambda: not remains(server), timeout_s=60)


@pytest.mark.faults
def test_a_killed_server_is_cleaned_up_and_starts_again(server: LocalServer) -> None:
    started = server.start()
    os.kill(started.pid, signal.SIGKILL)
    assert process.until(lambda: process.birth(started.pid) is None, timeout_s=10)
    assert running(server.state) is None
    with Endpoint(started.access) as endpoint:
        assert not endpoint.live()
        with pytest.raises(ServerUnavailable):
            endpoint.active()
    again = server.start()
    assert again.pid != started.pid
    assert running(server.state) == again


@pytest.mark.faults
def test_a_killed_start_is_cleaned_up(server: LocalServer) -> None:
    with start_in_child(server) as child:
        assert process.until(lambda: any("tritonserver" in each for each in remains(server)), timeout_s=30)
        child.kill()
    assert running(server.state) is None  # a server that was not checked is not announced
    started = server.start()  # on the same ports
    assert running(server.state) == started


@pytest.mark.faults
def test_a_server_that_cannot_load_says_why(server: LocalServer) -> None:
    model = onnx.load(server.repository / "products" / "1" / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, server.repository / "products" / "1" / "model.onnx")
    with pytest.raises(ServerUnavailable, match=r"ended while it started.*triton\.log"):
        server.start()
    assert "NoSuchOperator" in (server.state / "triton.log").read_text()
    assert running(server.state) is None


@pytest.mark.faults
def test_a_server_that_answers_wrongly_is_not_left_running(server: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(server.repository)
    write_versions(repository, tmp_path, 2)
    shutil.copyfile(repository.path(2) / "golden.npz", repository.path(1) / "golden.npz")
    update_hashes(repository.path(1))
    with pytest.raises(GoldenMismatch):
        server.start()
    assert running(server.state) is None


def test_an_empty_repository_accepts_a_first_version_unless_it_is_broken(server: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(server.repository)
    write_versions(repository, tmp_path, 2)
    shutil.copyfile(repository.path(1) / "golden.npz", repository.path(2) / "golden.npz")
    update_hashes(repository.path(2))
    repository.configure([])
    with Endpoint(server.start().access) as endpoint:
        assert endpoint.active() == ()
        with pytest.raises(GoldenMismatch):
            endpoint.switch(repository, 2)
        assert endpoint.active() == repository.configured() == ()
        endpoint.switch(repository, 1)
        assert endpoint.active() == repository.configured() == (1,)


@pytest.mark.faults
def test_a_switch_without_a_server_restores_the_configuration(server: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(server.repository)
    write_versions(repository, tmp_path, 2)
    with Endpoint(f"127.0.0.1:{server.grpc_port}") as endpoint, pytest.raises(ServerUnavailable):
        endpoint.switch(repository, 2)
    assert repository.configured() == (1,)


@pytest.mark.faults
def test_a_model_whose_process_was_killed_is_healed(server: LocalServer) -> None:
    repository = ModelRepository(server.repository)
    started = server.start()
    with Endpoint(started.access) as endpoint:
        assert not endpoint.heal(repository)
        stub = str(server.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
        process.kill([pid for pid, argv in process.commands() if argv[0] == stub])
        assert endpoint.active() == (1,)  # the server still reports it as active
        with pytest.raises((ModelNotReady, RequestTimeout)):
            endpoint.golden_check(repository, 1)
        assert endpoint.heal(repository)
        assert not endpoint.heal(repository)
    process.kill([started.pid])  # a normal stop would wait half a minute for the killed process
