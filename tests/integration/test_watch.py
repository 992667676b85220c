"""An endpoint under watch: when its processes are killed, it answers again with the version that the registry names."""

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
from tests.graphs import write_versions
from tests.integration.conftest import free_ports

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path: Path, triton_environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """Workspace with model versions 1 and 2, of which 1 is the current model; nothing runs before or after the test."""
    monkeypatch.setenv("CLEANSHELF_TRITON_ENV", str(triton_environment.path))
    workspace = Workspace.init(tmp_path / "shop")
    models = ModelVersions(Ledger(workspace.root))
    write_versions(repository(workspace), tmp_path, 1, 2)
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


def answering_version(workspace: Workspace) -> int | None:
    """Version that gives its golden answers, if any."""
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
    """Kills the processes that compute; the server itself keeps running and reports the model as ready."""
    stub = str(workspace.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
    process.kill([pid for pid, argv in process.commands() if argv[0] == stub])
    assert answering_version(workspace) is None


@pytest.mark.faults
def test_in_the_foreground_a_dead_model_is_healed_and_a_signal_stops_everything(shop: Workspace) -> None:
    with serve(shop) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("Triton answers")
        kill_model(shop)
        assert eventually(lambda: "unloaded and reloaded products" in child.stdout.readline())
        assert answering_version(shop) == 1
        server = running(shop.state)
        assert server
        child.send_signal(signal.SIGTERM)
        process.kill([server.pid])  # it would wait half a minute for the killed process
        assert child.wait(timeout=60) == 0
    assert running(shop.state) is None


@pytest.mark.faults
def test_detached_a_killed_server_comes_back_with_the_registered_version(shop: Workspace) -> None:
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    before = running(shop.state)
    assert before
    assert watcher(shop.state)
    repository(shop).configure([2])  # as a switch leaves it that is killed before it reaches the registry
    os.kill(before.pid, signal.SIGKILL)
    assert eventually(lambda: answering_version(shop) == 1)
    after = running(shop.state)
    assert after
    assert (after.pid != before.pid, after.url) == (True, before.url)
    assert eventually(lambda: "restarted the server" in (shop.state / "watch.log").read_text())
    with serve(shop, "--stop") as child:
        assert child.wait(timeout=60) == 0
    assert (running(shop.state), watcher(shop.state)) == (None, None)


@pytest.mark.faults
def test_a_switch_that_did_not_reach_the_registry_is_undone(shop: Workspace) -> None:
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    server = running(shop.state)
    assert server
    assert rollback_model(shop, 2) == 2
    time.sleep(1.2)  # the watch checks meanwhile
    assert answering_version(shop) == 2, "the version that the registry names stays"
    with shop.lock("test", name="serving"), Endpoint(server.access) as endpoint:
        endpoint.switch(repository(shop), 1)
    assert eventually(lambda: answering_version(shop) == 2)


def test_a_start_serves_what_the_registry_names(shop: Workspace) -> None:
    repository(shop).configure([2])
    left = repository(shop).candidate(2).model
    left.mkdir()
    with serve(shop, "--detach") as child:
        assert child.wait(timeout=60) == 0
    assert answering_version(shop) == 1
    assert not left.exists()


def test_what_cannot_be_served_or_watched_is_one_line(shop: Workspace) -> None:
    """Covers tokens on an unencrypted network, and a watch without an endpoint."""
    watching = [sys.executable, "-m", "flows.cli", "watch", "-w", str(shop.root)]
    for child, message in (
        (serve(shop, "--host", "10.1.2.3"), "host 10.1.2.3: tokens would cross the network readable"),
        (
            subprocess.Popen(watching, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
            "no endpoint",
        ),
    ):
        with child:
            assert child.stdout is not None
            assert message in child.stdout.read()
        assert child.returncode == 2
    assert running(shop.state) is None
