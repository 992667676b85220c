"""Live requests overtake bulk at a real server; order is counted, not time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient

from contract import BULK, LIVE, encoded_name
from serving import Recognizer
from serving.errors import BatchTooLarge
from serving.repository.accelerator import CPU
from serving.repository.encoded import JOINED as JOINED_FILES
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.server import LocalServer
from serving.wire import connect, question, tensor_of, tensor_of_files
from tests.clients import png
from tests.graphs import golden_images, write_versions
from tests.triton import Triton, running_triton

pytestmark = pytest.mark.triton
JOINED = 2
BULK_REQUESTS = 16


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    """A server that computes at most two photos at once, and slowly."""
    folder = tmp_path_factory.mktemp("slow")
    repository = ModelRepository(folder / "repository", joined=JOINED, instances=1)
    write_versions(repository, folder, 1, work=4)
    repository.configure([1])
    with running_triton(repository, local_server(repository.root, folder / "state")) as triton:
        yield triton


@dataclass
class Asked:
    """Requests that were sent, and the names of those that were answered, in that order."""

    client: InferenceServerClient
    answered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def send(self, name: str, *, priority: int, photos: int = 1) -> None:
        """Sends a request without waiting for its answer."""
        arguments = question(
            tensor_of(golden_images(photos)), model="products", outputs=["ids"], timeout_s=60, priority=priority
        )
        self._send(name, arguments)

    def send_file(self, name: str, *, priority: int) -> None:
        """Sends a photo as a file without waiting for its answer."""
        [photo] = golden_images(1)
        arguments = question(
            tensor_of_files([png(photo)]), model=encoded_name("products"), outputs=["ids", "error"], timeout_s=60,
            priority=priority,
        )  # fmt: skip
        self._send(name, arguments)

    def _send(self, name: str, arguments: dict[str, Any]) -> None:
        def done(result: object, error: object) -> None:
            (self.failed if error else self.answered).append(name)

        self.client.async_infer(callback=done, **arguments)

    def wait_for(self, count: int) -> None:
        """Waits for as many answers."""
        assert process.until(lambda: len(self.answered) + len(self.failed) >= count, timeout_s=60)
        assert self.failed == []


def test_live_requests_overtake_bulk(slow: Triton) -> None:
    with connect(slow.access) as client:
        asked = Asked(client)
        for _ in range(BULK_REQUESTS):
            asked.send("bulk", priority=BULK)
        asked.wait_for(1)
        for name, priority in (("live", LIVE), ("of an older client", 0), ("of no such priority", 7)):
            asked.send(name, priority=priority)
        asked.wait_for(BULK_REQUESTS + 3)
    last = max(number for number, name in enumerate(asked.answered) if name != "bulk")
    assert last < BULK_REQUESTS // 2, asked.answered


def test_bulk_files_let_live_photos_and_live_files_pass(slow: Triton) -> None:
    """The decoder asks `products` with live requests, so what may be ahead of a live one is what decoders hold."""
    held = JOINED_FILES * CPU.instances
    files = 5 * held
    with connect(slow.access) as client:
        asked = Asked(client)
        for _ in range(files):
            asked.send_file("bulk", priority=BULK)
        asked.wait_for(1)
        asked.send("live", priority=LIVE)
        asked.send_file("live file", priority=LIVE)
        asked.wait_for(files + 2)
    places = {name: number for number, name in enumerate(asked.answered)}
    assert places["live"] <= JOINED_FILES + held + JOINED, "the first answer, what decoders hold, and a running batch"
    assert places["live file"] <= 3 * held, "it waits for a decoder, and then for what the others hold"


def test_requests_are_joined_up_to_the_chosen_size_and_may_hold_more(slow: Triton) -> None:
    def computed() -> Counter[int]:
        with connect(slow.access) as client:
            [stats] = client.get_inference_statistics("products").model_stats
        return Counter({batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats})

    before = computed()
    with connect(slow.access) as client:
        asked = Asked(client)
        for _ in range(6):
            asked.send("live", priority=LIVE)
        asked.wait_for(6)
    slow.infer(golden_images(8))
    assert process.until(lambda: 8 in computed() - before, timeout_s=10), "counts follow an answer a moment later"
    assert set(computed() - before) <= {1, JOINED, 8}


def test_a_folder_is_bulk_and_a_photo_is_live(slow: Triton) -> None:
    photos, answers = golden_images(32), list[object]()
    with Recognizer(slow.access) as folder, Recognizer(slow.access) as person:
        reader = threading.Thread(target=lambda: answers.extend(folder.stream(iter(photos))))
        reader.start()
        assert process.until(lambda: bool(answers), timeout_s=60)
        person.recognise(photos[:3])
        answered = len(answers)
        reader.join()
    assert len(answers) == len(photos)
    assert answered < len(photos) // 2, "16 more were in the queue when the person asked"


def test_a_client_follows_a_switch_to_smaller_batches(slow: Triton) -> None:
    photos = golden_images(12)
    replace(slow.repository, joined=12).configure([1])
    slow.endpoint.load()
    with Recognizer(slow.access) as recognizer:
        expected = recognizer.recognise(photos)
        slow.repository.configure([1])
        slow.endpoint.load()
        found = recognizer.recognise(photos)
    assert [answer.ranked[0][0] for answer in found] == [answer.ranked[0][0] for answer in expected]
    with pytest.raises(BatchTooLarge, match="<= 8"):
        slow.infer(photos)
