"""Real server with two versions, and clients that send requests without a pause."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.access import Access
from serving.errors import ServingError
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.server import LocalServer
from serving.wire import Answer, connect, infer
from tests.graphs import stage


@dataclass
class Served:
    """Running server with its repository, its control and the access of its owner."""

    repository: ModelRepository
    server: LocalServer
    endpoint: Endpoint
    access: Access

    def ask(
        self,
        image: NDArray,
        *,
        model: str = "products",
        outputs: Sequence[str] = ("ids", "probs"),
        version: str = "",
        timeout_s: float = 20.0,
    ) -> Answer:
        """Answer of the server to a batch of images (B, S, S, 3)."""
        with connect(self.access) as client:
            return infer(
                client,
                image,
                url=self.access.url,
                model=model,
                outputs=outputs,
                version=version,
                timeout_s=timeout_s,
            )


@contextmanager
def serve(folder: Path, local_server: Callable[..., LocalServer]) -> Iterator[Served]:
    """Runs a server with versions 1 and 2, of which 1 is loaded."""
    repository = ModelRepository(folder / "repository")
    stage(repository, folder, 1, 2)
    repository.configure([1])
    with serving(repository, local_server(repository.root, folder / "state")) as served:
        yield served


@contextmanager
def serving(repository: ModelRepository, server: LocalServer) -> Iterator[Served]:
    """Runs the server for the duration of the block."""
    started = server.start()
    try:
        with Endpoint(started.access) as endpoint:
            yield Served(repository, server, endpoint, started.access)
    finally:
        process.kill([started.pid])  # a normal stop would wait for a graph that a test made hang
        server.stop()


@dataclass
class Load:
    """Clients in a closed loop, which compare each answer with the golden one of the version that gave it."""

    served: Served
    stopping: threading.Event = field(default_factory=threading.Event)
    answered: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def loop(self) -> None:
        """Sends requests one after the other until `stopping` is set."""
        golden = {version: self.served.repository.golden(version) for version in (1, 2)}
        with connect(self.served.access) as client:
            number = 0
            while not self.stopping.is_set():
                number = (number + 1) % len(golden[1].image)
                image = golden[1].image[number : number + 1]
                try:
                    answer = infer(client, image, url="", model="products", outputs=["ids", "probs"], timeout_s=20)
                    self.answered[answer.version] = self.answered.get(answer.version, 0) + 1
                    expected = golden.get(answer.version)
                    if expected and not np.array_equal(answer.arrays["ids"][0], expected.ids[number]):
                        self.faults.append(f"version {answer.version} answered image {number} wrongly")
                except ServingError as error:
                    self.faults.append(str(error))

    def meet(self, *versions: int, more: int = 20) -> bool:
        """Waits until these versions have answered `more` further requests; returns False after 60 s."""

        def answers() -> int:
            return sum(self.answered.get(version, 0) for version in versions)

        wanted = answers() + more
        return process.until(lambda: answers() >= wanted, timeout_s=60)


@contextmanager
def closed_loop(served: Served, *, clients: int = 2) -> Iterator[Load]:
    """Runs clients in threads for the duration of the block."""
    load = Load(served)
    threads = [threading.Thread(target=load.loop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()
