"""Requests and model versions when processes are killed, disks fill up and servers are down."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import DiskFull, ModelNotReady, RequestTimeout, ServerUnavailable, ServingError
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.server import LocalServer, running
from serving.wire import connect, infer, infer_encoded
from tests.graphs import golden_images, write_versions
from tests.integration.test_triton_server import remains
from tests.triton import Triton, closed_loop, triton_with_two_versions

pytestmark = [pytest.mark.triton, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
SOON_S = 5.0
NO_DEADLINE_S = 15.0  # one request may take 20
IMAGES = golden_images(8)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    """Separate server whose graph takes about 50 ms per photo."""
    folder = tmp_path_factory.mktemp("slow")
    repository = ModelRepository(folder / "repository", instances=1)
    write_versions(repository, folder, 1, work=20)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        access = server.start().access
        with Endpoint(access) as endpoint:
            yield Triton(repository, server, endpoint, access)
    finally:
        if last := running(server.state):
            process.kill([last.pid])  # a normal stop would wait for the killed processes
        server.stop()
        assert remains(server) == []


class WaitingClient:
    """Client that waits for eight answers, each of which takes about 400 ms."""

    def __init__(self, triton: Triton) -> None:
        self.error: ServingError | None = None
        self._thread = threading.Thread(target=self._infer, args=(triton,))
        self._thread.start()
        time.sleep(0.3)  # now the server computes one of the answers

    def _infer(self, triton: Triton) -> None:
        try:
            for _ in range(8):
                triton.infer(IMAGES)
        except ServingError as error:
            self.error = error

    def wait_for_error(self) -> ServingError | None:
        """Error that the client gets, long before its deadlines pass."""
        self._thread.join(NO_DEADLINE_S)
        assert not self._thread.is_alive()
        return self.error


def test_a_backend_killed_in_mid_request(slow: Triton) -> None:
    client = WaitingClient(slow)
    state = str(slow.server.state)
    pids = [pid for pid, argv in process.commands() if argv[0].startswith(state) and "/products/" in argv[1]]
    assert pids
    process.kill(pids)
    error = client.wait_for_error()
    assert isinstance(error, ModelNotReady | RequestTimeout)
    assert slow.endpoint.heal(slow.repository)
    slow.endpoint.golden_check(slow.repository, 1)


def test_a_server_killed_in_mid_request(slow: Triton) -> None:
    client = WaitingClient(slow)
    process.kill([running(slow.server.state).pid])
    error = client.wait_for_error()
    assert isinstance(error, ServerUnavailable), error
    again = slow.server.start()
    with Endpoint(again.access) as endpoint:
        endpoint.golden_check(slow.repository, 1)


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"  # bound, but no server listens
        with connect(url) as connection:
            start = time.monotonic()
            for request in (
                lambda: infer(connection, IMAGES, url=url, model="products", outputs=["ids"], timeout_s=30),
                lambda: infer_encoded(connection, [b"x"], url=url, model="products", outputs=["ids"], timeout_s=30),
            ):
                with pytest.raises(ServerUnavailable, match=f"no server answers at {url}"):
                    request()
            assert time.monotonic() - start < SOON_S


def test_a_server_that_accepts_connections_and_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with connect(url) as client, pytest.raises(RequestTimeout):
            infer(client, IMAGES, url=url, model="products", outputs=["ids"], timeout_s=1)
        assert time.monotonic() - start < SOON_S


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    with triton_with_two_versions(tmp_path_factory.mktemp("triton"), local_server) as triton:
        yield triton


PUBLISH = """
import sys
from pathlib import Path
from serving.access import Access
from serving.server.control import Endpoint
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images
repository, graph, version = ModelRepository(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
try:
    repository.write(graph, version=version, labels=LABELS, lineage={}, golden=golden_images())
    print("published")
except Exception as error:
    print(type(error).__name__)
"""


def test_of_several_writers_of_one_version_one_succeeds(triton: Triton, tmp_path: Path) -> None:
    write_versions(ModelRepository(tmp_path / "elsewhere"), tmp_path, 3)
    command = [sys.executable, "-c", PUBLISH, str(triton.repository.root), str(tmp_path / "3.onnx"), "3"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    outputs = [child.communicate("go\n", timeout=60)[0].strip() for child in children]
    assert sorted(outputs) == ["VersionInUse", "VersionInUse", "published"]
    triton.repository.verify(3)
    assert not list(triton.repository.model.glob(".*"))


def test_switches_at_once_happen_one_after_the_other(triton: Triton) -> None:
    done: list[int] = []

    def switch(version: int) -> None:
        with Endpoint(triton.access) as endpoint:
            endpoint.switch(triton.repository, version)
            done.append(version)

    with closed_loop(triton) as load:
        threads = [threading.Thread(target=switch, args=(version,)) for version in (2, 1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert load.faults == []
    assert sorted(done) == [1, 2, 2]
    assert triton.repository.configured() == triton.endpoint.active() == (done[-1],)
    triton.endpoint.golden_check(triton.repository, done[-1])


FILL = """
import sys
from pathlib import Path
from serving.errors import DiskFull
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images
repository, graph = ModelRepository(Path(sys.argv[1])), Path(sys.argv[2])
(repository.root / "rest").write_bytes(bytes(1 << 17))  # room for a switch, once it is deleted
try:
    for version in range(10, 1000):
        repository.write(graph, version=version, labels=LABELS, lineage={}, golden=golden_images())
except DiskFull:
    print(version)
try:
    with (repository.root / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
"""


def test_a_disk_that_fills_up_while_publishing(tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    disk = tmp_path / "repository"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this machine permits no tmpfs mounts")
    try:
        with triton_with_two_versions(tmp_path, local_server) as triton, closed_loop(triton) as load:
            graph = tmp_path / "2.onnx"
            run = subprocess.run([sys.executable, "-c", FILL, str(triton.repository.root), str(graph)], cwd=ROOT,
                                 capture_output=True, text=True, check=True)  # fmt: skip
            refused = int(run.stdout)
            assert triton.repository.versions() == (1, 2, *range(10, refused))
            with pytest.raises(DiskFull):
                triton.endpoint.switch(triton.repository, 2)
            assert load.wait_for_answers(1)
            assert load.faults == []
            assert triton.repository.configured() == triton.endpoint.active() == (1,)
            (disk / "rest").unlink()
            triton.endpoint.switch(triton.repository, 2)
            assert load.wait_for_answers(2)
        assert load.faults == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
