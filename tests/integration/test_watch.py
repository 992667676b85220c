"""An endpoint that is kept alive: its processes are killed, and it answers again with the version that the registry names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.endpoint.server import access, stop_endpoint
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.rollback import rollback_model
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.errors import ServingError
from serving.server import process
from serving.server.control import Endpoint
from serving.server.environment import Environment
from serving.server.server import running
from serving.server.watch_lock import watcher
from tests.graphs import stage
from tests.integration.conftest import free_ports

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path: Path, triton_environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """Model versions 1 and 2 are registered, 1 is assigned, and nothing runs; nothing is left running either."""
    monkeypatch.setenv("CLEANSHELF_TRITON_ENV", str(triton_environment.path))
    workspace = Workspace.init(tmp_path / "shop")
    models = ModelVersions(Ledger(workspace.root))
    stage(repository(workspace), tmp_path, 1, 2)
    for version in (1, 2):
        models.register({"version": version, "data_version": f"data{version}", "graph_sha256": str(version)})
    for version in (2, 1):
        models.promote(version)
    yield workspace
    server = running(workspace.state)
    stop_endpoint(workspace)
    assert server is None or process.birth(server.pid) is None
    assert watcher(workspace.state) is None


def serve(workspace: Workspace, *options: str) -> subprocess.Popen[str]:
    ports = [word for name, port in free_ports().items() for word in (f"--{name.replace('_', '-')}", str(port))]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "serve",
        "-w",
        str(workspace.root),
        "--period",
        "0.5",
        *ports,
        *options,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def serving(workspace: Workspace) -> int | None:
    """The version that gives its golden answers, if one does."""
    found = access(workspace)
    if found is None:
        return None
    with Endpoint(found, answer_timeout_s=5) as endpoint:
        try:
            [version] = endpoint.active()
            endpoint.golden_check(repository(workspace), version)
            return version
        except (ServingError, ValueError):
            return None


def eventually(condition: Callable[[], bool]) -> bool:
    return process.until(condition, timeout_s=60)


def kill_model(workspace: Workspace) -> None:
    """kill -9 of the processes that compute; the server itself goes on and calls the model ready."""
    stub = str(workspace.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
    process.kill([pid for pid, argv in process.commands() if argv[0] == stub])
    assert serving(workspace) is None


@pytest.mark.faults
def test_in_the_foreground_a_dead_model_is_healed_and_a_signal_stops_everything(shop: Workspace) -> None:
    with serve(shop) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("Triton answers")
        kill_model(shop)
        assert eventually(lambda: "unloaded and reloaded products" in child.stdout.readline())
        assert serving(shop) == 1
        server = running(shop.state)
        assert server
        child.send_signal(signal.SIGTERM)
        process.kill([server.pid])  # it would wait half a minute for the process it lost
        assert child.wait(timeout=60) == 0
    assert running(shop.state) is None


@pytest.mark.faults
def test_detached_a_killed_server_comes_back_with_the_registered_version(shop: Workspace) -> None:
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    before = running(shop.state)
    assert before
    assert watcher(shop.state)
    repository(shop).configure([2])  # as a switch that was killed before the registry knew
    os.kill(before.pid, signal.SIGKILL)
    assert eventually(lambda: serving(shop) == 1)
    after = running(shop.state)
    assert after
    assert (after.pid != before.pid, after.url) == (True, before.url)
    assert eventually(lambda: "restarted the server" in (shop.state / "watch.log").read_text())
    with serve(shop, "--stop") as child:
        assert child.wait(timeout=60) == 0
    assert (running(shop.state), watcher(shop.state)) == (None, None)


@pytest.mark.faults
def test_a_switch_killed_before_the_registry_knew_is_undone(shop: Workspace) -> None:
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    server = running(shop.state)
    assert server
    assert rollback_model(shop, 2) == 2
    time.sleep(1.2)  # looks meanwhile
    assert serving(shop) == 2, "what the registry names stays"
    with shop.lock("test", name="serving"), Endpoint(server.access) as endpoint:
        endpoint.switch(repository(shop), 1)
    assert eventually(lambda: serving(shop) == 2)


def test_a_start_serves_what_the_registry_names(shop: Workspace) -> None:
    repository(shop).configure([2])
    left = repository(shop).candidate(2).model
    left.mkdir()
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    assert serving(shop) == 1
    assert not left.exists()


def test_what_cannot_be_served_or_watched_is_one_line(shop: Workspace) -> None:
    """Tokens on an open network, and nothing to watch."""
    watching = [sys.executable, "-m", "flows.cli", "watch", "-w", str(shop.root)]
    for child, said in (
        (serve(shop, "--host", "10.1.2.3"), "host 10.1.2.3: tokens would cross the network readable"),
        (
            subprocess.Popen(watching, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
            "no endpoint",
        ),
    ):
        with child:
            assert child.stdout is not None
            assert said in child.stdout.read()
        assert child.returncode == 2
    assert running(shop.state) is None
