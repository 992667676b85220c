"""Probes of a real server: a slow model is not dead, and a model that is reported as ready may be dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from serving.access import Access
from serving.errors import CorruptVersion, RequestTimeout, ServingError
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.probe import Health, Probe
from serving.server.server import LocalServer
from serving.wire import connect, infer
from tests.graphs import golden_images, make_endless, update_hashes, write_versions

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def slow(
    tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]
) -> Iterator[tuple[LocalServer, ModelRepository, Access]]:
    """Server, repository and access of a model that takes about 150 ms per photo, with a queue for two requests."""
    folder = tmp_path_factory.mktemp("slow")
    repository = ModelRepository(folder / "repository", joined=1, instances=1)
    write_versions(repository, folder, 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=2).to_pbtxt())
    server = local_server(repository.root, folder / "state")
    started = server.start()
    yield server, repository, started.access
    process.kill([started.pid])  # a normal stop would wait for the killed process
    server.stop()


@contextmanager
def many_clients(access: Access, *, clients: int) -> Iterator[None]:
    """Runs more clients than the queue has room for, for the duration of the block."""
    stopping = threading.Event()

    def send_requests() -> None:
        with connect(access) as client:
            while not stopping.is_set():
                try:
                    infer(client, golden_images(1), url="", model="products", outputs=["ids"], timeout_s=20)
                except ServingError:
                    stopping.wait(0.02)

    threads = [threading.Thread(target=send_requests) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def stub_processes(server: LocalServer) -> list[int]:
    path = str(server.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
    return [pid for pid, argv in process.commands() if argv[0] == path]


@pytest.mark.slow
def test_many_clients_do_not_cause_a_restart(slow: tuple[LocalServer, ModelRepository, Access]) -> None:
    _, repository, access = slow
    with Endpoint(access, answer_timeout_s=0.05) as impatient, many_clients(access, clients=6):
        probe, end = Probe(impatient, repository, hung_s=5), time.monotonic() + 8
        states = set()
        while time.monotonic() < end:
            states.add(probe.check())
            time.sleep(0.1)
    assert states == {Health.BUSY}


@pytest.mark.faults
def test_a_model_that_never_ends_is_hung(slow: tuple[LocalServer, ModelRepository, Access], tmp_path: Path) -> None:
    _, repository, access = slow
    endless = ModelRepository(repository.root, "endless", instances=1, warmup=False)
    write_versions(endless, tmp_path, 1)
    make_endless(endless.path(1) / "model.onnx")
    update_hashes(endless.path(1))
    endless.configure([1])
    with Endpoint(access, model="endless", answer_timeout_s=0.5) as control:
        control.load()
        probe = Probe(control, endless, hung_s=1.5)
        assert probe.check() is Health.BUSY
        assert process.until(lambda: probe.check() is Health.HUNG, timeout_s=20)
        before = model_processes("endless")
        with pytest.raises(RequestTimeout):
            control.heal(endless)
        assert model_processes("endless") == before, "a slow model is not restarted"
        with pytest.raises(RequestTimeout):  # the restarted model hangs as well
            control.heal(endless, is_hung=True)
        assert model_processes("endless") > before
    process.kill(list(model_processes("endless")))


def model_processes(model: str) -> set[int]:
    """Pids of the processes of a model, including any that are ending."""
    return {pid for pid, argv in process.commands() if f"models/{model}/1" in " ".join(argv[:2])}


@pytest.mark.faults
def test_a_dead_model_is_healed_unless_its_files_were_altered(
    slow: tuple[LocalServer, ModelRepository, Access],
) -> None:
    server, repository, access = slow
    with Endpoint(access) as control:
        probe = Probe(control, repository)
        process.kill(stub_processes(server))
        assert control.active() == (1,), "the server still reports it as active"
        assert probe.check() is Health.DEAD
        graph = repository.path(1) / "model.onnx"
        kept = graph.read_bytes()
        graph.write_bytes(kept[:-1])
        with pytest.raises(CorruptVersion):
            list(probe.heal())
        graph.write_bytes(kept)
        assert list(probe.heal()) == ["products", "products-encoded"]
        assert probe.check() is Health.ANSWERS
        assert list(probe.heal()) == []


@pytest.mark.faults
def test_a_killed_server_is_gone(slow: tuple[LocalServer, ModelRepository, Access]) -> None:
    server, repository, access = slow
    process.kill(
        [pid for pid, argv in process.commands() if f"--model-repository={server.state}/triton/models" in argv]
    )
    with Endpoint(access, answer_timeout_s=2) as control:
        assert Probe(control, repository).check() is Health.GONE
