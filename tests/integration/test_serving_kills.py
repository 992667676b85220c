"""Requests, versions and disks when processes are killed, disks fill up and servers are missing."""

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
from tests.graphs import golden_images, stage
from tests.integration.test_triton_server import traces
from tests.served import Served, closed_loop, serve

pytestmark = [pytest.mark.triton, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
SOON_S = 5.0
NO_DEADLINE_S = 15.0  # one request may take 20
IMAGES = golden_images(8)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Served]:
    """A server of its own, whose graph takes about 50 ms per photo."""
    folder = tmp_path_factory.mktemp("slow")
    repository = ModelRepository(folder / "repository", instances=1)
    stage(repository, folder, 1, work=20)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        access = server.start().access
        with Endpoint(access) as endpoint:
            yield Served(repository, server, endpoint, access)
    finally:
        if last := running(server.state):
            process.kill([last.pid])  # asked nicely, it would wait for the processes it lost
        server.stop()
        assert traces(server) == []


class Waiting:
    """A client that waits for answers, each of which takes some 400 ms."""

    def __init__(self, served: Served) -> None:
        self.error: ServingError | None = None
        self._thread = threading.Thread(target=self._ask, args=(served,))
        self._thread.start()
        time.sleep(0.3)  # now one of them is being computed

    def _ask(self, served: Served) -> None:
        try:
            for _ in range(8):
                served.ask(IMAGES)
        except ServingError as error:
            self.error = error

    def learns_of_it(self) -> ServingError | None:
        """The error it gets, long before its deadlines would have passed."""
        self._thread.join(NO_DEADLINE_S)
        assert not self._thread.is_alive()
        return self.error


def test_a_backend_killed_in_mid_request(slow: Served) -> None:
    waiting = Waiting(slow)
    state = str(slow.server.state)
    stubs = [pid for pid, argv in process.commands() if argv[0].startswith(state) and "/products/" in argv[1]]
    assert stubs
    process.kill(stubs)
    error = waiting.learns_of_it()
    assert isinstance(error, ModelNotReady | RequestTimeout)
    assert slow.endpoint.heal(slow.repository)
    slow.endpoint.golden_check(slow.repository, 1)


def test_a_server_killed_in_mid_request(slow: Served) -> None:
    waiting = Waiting(slow)
    process.kill([running(slow.server.state).pid])
    error = waiting.learns_of_it()
    assert isinstance(error, ServerUnavailable), error
    again = slow.server.start()
    with Endpoint(again.access) as endpoint:
        endpoint.golden_check(slow.repository, 1)


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"  # bound, but no server listens
        with connect(url) as client:
            start = time.monotonic()
            for ask in (
                lambda: infer(client, IMAGES, url=url, model="products", outputs=["ids"], timeout_s=30),
                lambda: infer_encoded(client, [b"x"], url=url, model="products", outputs=["ids"], timeout_s=30),
            ):
                with pytest.raises(ServerUnavailable, match=f"no server answers at {url}"):
                    ask()
            assert time.monotonic() - start < SOON_S


def test_a_server_that_never_says_a_word() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with connect(url) as client, pytest.raises(RequestTimeout):
            infer(client, IMAGES, url=url, model="products", outputs=["ids"], timeout_s=1)
        assert time.monotonic() - start < SOON_S


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), local_server) as found:
        yield found


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


def test_of_two_that_publish_one_number_one_does(served: Served, tmp_path: Path) -> None:
    stage(ModelRepository(tmp_path / "elsewhere"), tmp_path, 3)
    command = [sys.executable, "-c", PUBLISH, str(served.repository.root), str(tmp_path / "3.onnx"), "3"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    said = [child.communicate("go\n", timeout=60)[0].strip() for child in children]
    assert sorted(said) == ["VersionInUse", "VersionInUse", "published"]
    served.repository.verify(3)
    assert not list(served.repository.model.glob(".*"))


def test_switches_at_once_happen_one_after_the_other(served: Served) -> None:
    done: list[int] = []

    def switch(version: int) -> None:
        with Endpoint(served.access) as endpoint:
            endpoint.switch(served.repository, version)
            done.append(version)

    with closed_loop(served) as load:
        threads = [threading.Thread(target=switch, args=(version,)) for version in (2, 1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert load.faults == []
    assert sorted(done) == [1, 2, 2]
    assert served.repository.configured() == served.endpoint.active() == (done[-1],)
    served.endpoint.golden_check(served.repository, done[-1])


FILL = """
import sys
from pathlib import Path
from serving.errors import DiskFull
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images
repository, graph = ModelRepository(Path(sys.argv[1])), Path(sys.argv[2])
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
        with serve(tmp_path, local_server) as served, closed_loop(served) as load:
            graph = tmp_path / "2.onnx"
            run = subprocess.run([sys.executable, "-c", FILL, str(served.repository.root), str(graph)], cwd=ROOT,
                                 capture_output=True, text=True, check=True)  # fmt: skip
            refused = int(run.stdout)
            assert served.repository.versions() == (1, 2, *range(10, refused))
            with pytest.raises(DiskFull):
                served.endpoint.switch(served.repository, 2)
            assert load.meet(1)
            assert load.faults == []
            assert served.repository.configured() == served.endpoint.active() == (1,)
            (disk / "rest").unlink()
            served.endpoint.switch(served.repository, 2)
            assert load.meet(2)
        assert load.faults == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
