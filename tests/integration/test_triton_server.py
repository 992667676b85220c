"""Start and stop a real tritonserver: a server of its own for each test, and nothing of it left afterwards."""

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
from serving.server.server import LocalServer, _shared_memory_prefix, running
from tests.graphs import sign, stage

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
MakeServer = Callable[..., LocalServer]


@pytest.fixture
def own(tmp_path: Path, local_server: MakeServer) -> Iterator[LocalServer]:
    repository = ModelRepository(tmp_path / "repository")
    stage(repository, tmp_path, 1)
    repository.configure([1])
    server = local_server(repository.root, tmp_path / "state")
    yield server
    server.stop()
    assert traces(server) == []


def traces(server: LocalServer) -> list[str]:
    """Processes and shared memory of this server's state directory."""
    found = [" ".join(argv) for _, argv in process.commands() if any(str(server.state) in word for word in argv)]
    return found + [path.name for path in Path("/dev/shm").glob(f"{_shared_memory_prefix(server.state)}*")]


START = """
import sys
from pathlib import Path
from serving.server.server import LocalServer
repository, state, environment, *ports = sys.argv[1:]
server = LocalServer(Path(repository), Path(state), Path(environment), *map(int, ports))
server.start()
print("started", flush=True)
"""
GUARD = """
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


def test_the_server_outlives_who_started_it(own: LocalServer) -> None:
    with start_in_child(own) as child:
        assert child.communicate(timeout=60)[0] == "started\n"  # ends: the server holds none of its pipes
    server = running(own.state)
    assert server
    with Endpoint(server.access) as endpoint:
        endpoint.golden_check(ModelRepository(own.repository), 1)
    assert len(traces(own)) >= 2
    own.stop()
    assert traces(own) == []
    assert running(own.state) is None


@pytest.mark.faults
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_guarded_server_ends_with_who_started_it(own: LocalServer, is_killed: bool) -> None:
    with start_in_child(own, START[: START.index("server.start()")] + GUARD) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        assert running(own.state)
        if is_killed:
            child.kill()
        else:
            child.communicate(timeout=60)
            assert traces(own) == [], "it waits for both"
    assert process.until(lambda: not traces(own), timeout_s=60)


@pytest.mark.faults
def test_a_killed_server_is_cleared_away_and_starts_again(own: LocalServer) -> None:
    server = own.start()
    os.kill(server.pid, signal.SIGKILL)
    assert process.until(lambda: process.birth(server.pid) is None, timeout_s=10)
    assert running(own.state) is None
    with Endpoint(server.access) as endpoint:
        assert not endpoint.live()
        with pytest.raises(ServerUnavailable):
            endpoint.active()
    again = own.start()
    assert again.pid != server.pid
    assert running(own.state) == again


@pytest.mark.faults
def test_a_killed_start_is_cleared_away(own: LocalServer) -> None:
    with start_in_child(own) as child:
        assert process.until(lambda: any("tritonserver" in trace for trace in traces(own)), timeout_s=30)
        child.kill()
    assert running(own.state) is None  # a server that failed its check is not announced
    server = own.start()  # on the same ports
    assert running(own.state) == server


@pytest.mark.faults
def test_a_server_that_cannot_load_says_why(own: LocalServer) -> None:
    model = onnx.load(own.repository / "products" / "1" / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, own.repository / "products" / "1" / "model.onnx")
    with pytest.raises(ServerUnavailable, match=r"ended while it started.*triton\.log"):
        own.start()
    assert "NoSuchOperator" in (own.state / "triton.log").read_text()
    assert running(own.state) is None


@pytest.mark.faults
def test_a_server_that_answers_wrongly_is_not_left_running(own: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(own.repository)
    stage(repository, tmp_path, 2)
    shutil.copyfile(repository.path(2) / "golden.npz", repository.path(1) / "golden.npz")
    sign(repository.path(1))
    with pytest.raises(GoldenMismatch):
        own.start()
    assert running(own.state) is None


def test_an_empty_repository_takes_a_first_version_but_no_broken_one(own: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(own.repository)
    stage(repository, tmp_path, 2)
    shutil.copyfile(repository.path(1) / "golden.npz", repository.path(2) / "golden.npz")
    sign(repository.path(2))
    repository.configure([])
    with Endpoint(own.start().access) as endpoint:
        assert endpoint.active() == ()
        with pytest.raises(GoldenMismatch):
            endpoint.switch(repository, 2)
        assert endpoint.active() == repository.configured() == ()
        endpoint.switch(repository, 1)
        assert endpoint.active() == repository.configured() == (1,)


@pytest.mark.faults
def test_a_switch_without_a_server_puts_the_choice_back(own: LocalServer, tmp_path: Path) -> None:
    repository = ModelRepository(own.repository)
    stage(repository, tmp_path, 2)
    with Endpoint(f"127.0.0.1:{own.grpc_port}") as endpoint, pytest.raises(ServerUnavailable):
        endpoint.switch(repository, 2)
    assert repository.configured() == (1,)


@pytest.mark.faults
def test_a_model_whose_process_was_killed_is_healed(own: LocalServer) -> None:
    repository = ModelRepository(own.repository)
    server = own.start()
    with Endpoint(server.access) as endpoint:
        assert not endpoint.heal(repository)
        stub = str(own.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
        process.kill([pid for pid, argv in process.commands() if argv[0] == stub])
        assert endpoint.active() == (1,)  # as the server has it
        with pytest.raises((ModelNotReady, RequestTimeout)):
            endpoint.golden_check(repository, 1)
        assert endpoint.heal(repository)
        assert not endpoint.heal(repository)
    process.kill([server.pid])  # asked nicely, it would wait half a minute for the process it lost
