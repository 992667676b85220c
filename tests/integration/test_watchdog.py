"""Probes a real server: slow is not dead, and ready is not alive."""

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
from tests.graphs import golden_images, make_endless, sign, stage

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def slow(
    tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]
) -> Iterator[tuple[LocalServer, ModelRepository, Access]]:
    """About 150 ms for each photo, and room for two requests to wait."""
    folder = tmp_path_factory.mktemp("slow")
    repository = ModelRepository(folder / "repository", max_batch_size=1, instances=1)
    stage(repository, folder, 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=2).to_pbtxt())
    server = local_server(repository.root, folder / "state")
    started = server.start()
    yield server, repository, started.access
    process.kill([started.pid])  # asked nicely, it would wait for a process that a test killed
    server.stop()


@contextmanager
def crowd(access: Access, *, clients: int) -> Iterator[None]:
    """More clients than the queue has room for."""
    stopping = threading.Event()

    def ask() -> None:
        with connect(access) as client:
            while not stopping.is_set():
                try:
                    infer(client, golden_images(1), url="", model="products", outputs=["ids"], timeout_s=20)
                except ServingError:
                    stopping.wait(0.02)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def stubs(server: LocalServer) -> list[int]:
    stub = str(server.state / "triton" / "backends" / "python" / "triton_python_backend_stub")
    return [pid for pid, argv in process.commands() if argv[0] == stub]


def test_a_crowd_is_no_reason_to_heal(slow: tuple[LocalServer, ModelRepository, Access]) -> None:
    _, repository, access = slow
    with Endpoint(access, answer_timeout_s=0.05) as impatient, crowd(access, clients=6):
        watchdog, end = Probe(impatient, repository, hung_s=5), time.monotonic() + 8
        pulses = set()
        while time.monotonic() < end:
            pulses.add(watchdog.check())
            time.sleep(0.1)
    assert pulses == {Health.BUSY}


@pytest.mark.faults
def test_a_model_that_never_ends_is_hung(slow: tuple[LocalServer, ModelRepository, Access], tmp_path: Path) -> None:
    _, repository, access = slow
    endless = ModelRepository(repository.root, "endless", instances=1, warmup=False)
    stage(endless, tmp_path, 1)
    make_endless(endless.path(1) / "model.onnx")
    sign(endless.path(1))
    endless.configure([1])
    with Endpoint(access, model="endless", answer_timeout_s=0.5) as control:
        control.load()
        watchdog = Probe(control, endless, hung_s=1.5)
        assert watchdog.check() is Health.BUSY
        assert process.until(lambda: watchdog.check() is Health.HUNG, timeout_s=20)
        before = computing("endless")
        with pytest.raises(RequestTimeout):
            control.heal(endless)
        assert computing("endless") == before, "it may only be slow"
        with pytest.raises(RequestTimeout):  # of the new one, as the graph is what it is
            control.heal(endless, is_hung=True)
        assert computing("endless") > before
    process.kill(list(computing("endless")))


def computing(model: str) -> set[int]:
    """The processes of a model, with any that are on their way out."""
    return {pid for pid, argv in process.commands() if f"models/{model}/1" in " ".join(argv[:2])}


@pytest.mark.faults
def test_a_dead_model_is_healed_unless_its_files_were_altered(
    slow: tuple[LocalServer, ModelRepository, Access],
) -> None:
    server, repository, access = slow
    with Endpoint(access) as control:
        watchdog = Probe(control, repository)
        process.kill(stubs(server))
        assert control.active() == (1,), "as the server has it"
        assert watchdog.check() is Health.DEAD
        graph = repository.path(1) / "model.onnx"
        kept = graph.read_bytes()
        graph.write_bytes(kept[:-1])
        with pytest.raises(CorruptVersion):
            list(watchdog.heal())
        graph.write_bytes(kept)
        assert list(watchdog.heal()) == ["products", "products-encoded"]
        assert watchdog.check() is Health.ANSWERS
        assert list(watchdog.heal()) == []


@pytest.mark.faults
def test_a_killed_server_is_gone(slow: tuple[LocalServer, ModelRepository, Access]) -> None:
    server, repository, access = slow
    process.kill(
        [pid for pid, argv in process.commands() if f"--model-repository={server.state}/triton/models" in argv]
    )
    with Endpoint(access, answer_timeout_s=2) as control:
        assert Probe(control, repository).check() is Health.GONE
