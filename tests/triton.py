"""A real Triton server with two model versions, and clients that send requests without a pause."""

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
from tests.graphs import write_versions


@dataclass
class Triton:
    """Running server with its repository, its control and an access with all tokens."""

    repository: ModelRepository
    server: LocalServer
    endpoint: Endpoint
    access: Access

    def infer(
        self,
        image: NDArray,
        *,
        model: str = "products",
        outputs: Sequence[str] = ("ids", "probs"),
        version: str = "",
        timeout_s: float = 20.0,
    ) -> Answer:
        """Answer of the server to a batch of images (B, S, S, 3) uint8."""
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
def triton_with_two_versions(folder: Path, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    """Runs a server with versions 1 and 2, of which 1 is loaded."""
    repository = ModelRepository(folder / "repository")
    write_versions(repository, folder, 1, 2)
    repository.configure([1])
    with running_triton(repository, local_server(repository.root, folder / "state")) as triton:
        yield triton


@contextmanager
def running_triton(repository: ModelRepository, server: LocalServer) -> Iterator[Triton]:
    """Runs the server for the duration of the block."""
    started = server.start()
    try:
        with Endpoint(started.access) as endpoint:
            yield Triton(repository, server, endpoint, started.access)
    finally:
        process.kill([started.pid])  # a normal stop would wait for graphs that hang on purpose
        server.stop()


@dataclass
class Load:
    """Clients in a closed loop. They compare each answer with the golden answer of the version that gave it.

    Attributes:
        answers: number of answers by model version.
        faults: wrong answers and errors.
    """

    triton: Triton
    stopping: threading.Event = field(default_factory=threading.Event)
    answers: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Sends requests one after the other until `stopping` is set."""
        golden = {version: self.triton.repository.golden(version) for version in (1, 2)}
        with connect(self.triton.access) as client:
            number = 0
            while not self.stopping.is_set():
                number = (number + 1) % len(golden[1].image)
                image = golden[1].image[number : number + 1]
                try:
                    answer = infer(client, image, url="", model="products", outputs=["ids", "probs"], timeout_s=20)
                    self.answers[answer.version] = self.answers.get(answer.version, 0) + 1
                    expected = golden.get(answer.version)
                    if expected and not np.array_equal(answer.arrays["ids"][0], expected.ids[number]):
                        self.faults.append(f"version {answer.version} answered image {number} wrongly")
                except ServingError as error:
                    self.faults.append(str(error))

    def wait_for_answers(self, *versions: int, more: int = 20) -> bool:
        """Waits until these versions have answered `more` further requests, together; returns False after 60 s."""

        def count() -> int:
            return sum(self.answers.get(version, 0) for version in versions)

        wanted = count() + more
        return process.until(lambda: count() >= wanted, timeout_s=60)


@contextmanager
def closed_loop(triton: Triton, *, clients: int = 2) -> Iterator[Load]:
    """Runs clients in threads for the duration of the block."""
    load = Load(triton)
    threads = [threading.Thread(target=load.run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()
