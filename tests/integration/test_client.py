"""Recogniser against a real tritonserver: every kind of photo, every wire, sync and async, many at once, and faults."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixels import BadPhoto
from serving import (
    Access,
    AsyncRecognizer,
    BadRequest,
    Forbidden,
    LocalRecognizer,
    ModelNotReady,
    Recognition,
    Recognizer,
    RequestRejected,
    RequestTimeout,
)
from serving.control import Endpoint
from serving.model_config import TritonConfig
from serving.process import until
from serving.region import Region
from serving.repository import ModelRepository
from serving.server import LocalServer, RunningServer
from serving.session import Pause, Wire
from serving.wire import connect
from tests.graphs import LABELS, golden_images, stage, write_graph

pytestmark = pytest.mark.triton
MakeServer = Callable[..., LocalServer]
WIRES: tuple[Wire, ...] = get_args(Wire)


@dataclass
class Served:
    repository: ModelRepository
    server: LocalServer
    running: RunningServer

    @property
    def access(self) -> Access:
        return self.running.access

    @property
    def graph(self) -> Path:
        return self.repository.path(1) / "model.onnx"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_server: MakeServer) -> Iterator[Served]:
    """Version 1 served, version 2 staged."""
    folder = tmp_path_factory.mktemp("served")
    repository = ModelRepository(folder / "repository")
    stage(repository, folder, 1, 2)
    repository.configure([1])
    server = local_server(repository.root, folder / "state")
    try:
        yield Served(repository, server, server.start())
    finally:
        server.stop()


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def of_every_kind(folder: Path) -> list[Any]:
    """21 photos, three batches: paths, bytes, arrays and Pillow images, of several sizes."""
    images = golden_images(21, size=40, seed=3)
    photos: list[Any] = []
    for number, image in enumerate(images):
        image = image[: 20 + number]
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(image))
        photos.append((path, str(path), jpeg(image), png(image), image, Image.fromarray(image))[number % 6])
    return photos


def ask_async(access: Access, photos: Sequence[Any], **options: Any) -> list[Recognition]:
    async def ask() -> list[Recognition]:
        async with AsyncRecognizer(access, **options) as recognizer:
            return await recognizer.recognise(photos, embedding=True)

    return asyncio.run(ask())


def ask_sync(access: Access, photos: Sequence[Any], **options: Any) -> list[Recognition]:
    with Recognizer(access, **options) as recognizer:
        return recognizer.recognise(photos, embedding=True)


def assert_same(found: Sequence[Any], local: Sequence[Any]) -> None:
    assert len(found) == len(local)
    for one, other in zip(found, local, strict=True):
        assert [label for label, _ in one.ranked] == [label for label, _ in other.ranked]
        assert np.allclose([p for _, p in one.ranked], [p for _, p in other.ranked], atol=1e-5)
        assert np.allclose(one.embedding, other.embedding, atol=1e-4)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert (one.model_version, one.data_version) == (1, "data1")


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])
def test_an_address_is_enough_and_answers_equal_local_onnx_runtime(
    served: Served, tmp_path: Path, ask: Callable[..., list[Recognition]], wire: Wire
) -> None:
    photos = of_every_kind(tmp_path)
    local = LocalRecognizer(served.graph).recognise(photos, embedding=True)
    assert_same(ask(served.access, photos, wire=wire), local)
    assert len({one.ranked[0][0] for one in local}) > 1
    assert ask(served.access, [], wire=wire) == []


def mixed(folder: Path) -> tuple[list[Any], list[int]]:
    """Photos of every kind with bad ones among them, and the places of these."""
    photos = of_every_kind(folder)
    bad = {0: b"", 5: b"no photo", 9: folder / "absent.jpg", 13: jpeg(golden_images(1, size=40)[0])[:200], 20: 7}
    for place, photo in bad.items():
        photos[place] = photo
    return photos, sorted(bad)


async def stream_async(access: Access, photos: Sequence[Any], **options: Any) -> list[Any]:
    async with AsyncRecognizer(access, **options) as recognizer:
        return [answer async for answer in recognizer.stream(photos, embedding=True)]


@pytest.mark.parametrize("wire", WIRES)
def test_a_bad_photo_is_an_answer_in_its_place(served: Served, tmp_path: Path, wire: Wire) -> None:
    photos, bad = mixed(tmp_path)
    good = [photo for place, photo in enumerate(photos) if place not in bad]
    local = LocalRecognizer(served.graph).recognise(good, embedding=True)
    with Recognizer(served.access, wire=wire) as recognizer:
        found = list(recognizer.stream(iter(photos), embedding=True))
        with pytest.raises(BadPhoto, match="photo 0: the file is empty"):
            recognizer.recognise(photos)
    for answers in (
        found,
        asyncio.run(stream_async(served.access, photos, wire=wire)),
        list(LocalRecognizer(served.graph).stream(photos, embedding=True)),
    ):
        reasons = [answer for answer in answers if isinstance(answer, BadPhoto)]
        assert [place for place, answer in enumerate(answers) if isinstance(answer, BadPhoto)] == bad
        assert all(str(reason).endswith("; leave it out or replace it") for reason in reasons)
        assert str(reasons[0]).startswith("photo 0: the file is empty")
        assert str(reasons[2]).startswith(f"{tmp_path / 'absent.jpg'}: No such file")
        assert reasons[2].reason == "No such file or directory"
        found_good = [replace(answer, model_version=1) for answer in answers if isinstance(answer, Recognition)]
        assert_same(found_good, local_as_version_1(local))


def local_as_version_1(local: Sequence[Recognition]) -> list[Recognition]:
    return [replace(answer, model_version=1) for answer in local]


class Counting(Recognizer):
    """Notes what is under way at a time, which calls were made, and how often it paused."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.under_way = self.most = self.pauses = 0
        self.calls: list[str] = []
        self.guard = threading.Lock()
        super().__init__(*arguments, **options)

    def _answer(self, batch: Any, embedding: bool) -> Any:
        with self.guard:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            return super()._answer(batch, embedding)
        finally:
            with self.guard:
                self.under_way -= 1

    def _act(self, step: Any) -> Any:
        if isinstance(step, Pause):
            self.pauses += 1
        else:
            self.calls.append(step.name)
        return super()._act(step)


def test_a_slow_reader_slows_the_reading_of_photos(served: Served) -> None:
    photo, taken, told = png(golden_images(1)[0]), 0, []

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield photo

    with Counting(served.access, in_flight=3) as recognizer:
        answers = recognizer.stream(endless(), progress=told.append)
        next(answers)
        assert until(lambda: recognizer.under_way == 0, timeout_s=30)
        assert taken == 2 * 3 * 8  # as far as is allowed, and no further while nobody reads
        for _ in range(200):
            next(answers)
        assert taken <= 201 + 2 * 3 * 8
        answers.close()
        assert 1 < recognizer.most <= 3
    assert told == list(range(8, 201, 8))


def test_async_tasks_are_bounded_too(served: Served) -> None:
    photo, taken = png(golden_images(1)[0]), 0

    def photos() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield photo

    async def ask() -> int:
        async with AsyncRecognizer(served.access, in_flight=2) as recognizer:
            answers = recognizer.stream(photos())
            await anext(answers)
            await asyncio.sleep(0.3)
            assert taken == 2 * 8
            return 1 + len([answer async for answer in answers])

    assert asyncio.run(ask()) == 100


@pytest.fixture(scope="module")
def slow(served: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second model in the same server: about 150 ms per photo, and room for one request to wait."""
    repository = ModelRepository(served.repository.root, "slow", max_batch_size=1, instances=1)
    stage(repository, tmp_path_factory.mktemp("slow"), 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=1).to_pbtxt())
    with Endpoint(served.access, model="slow") as endpoint:
        endpoint.load()
    return "slow"


def test_a_full_queue_is_asked_again_until_there_is_room(served: Served, slow: str) -> None:
    photos = list(golden_images(12))
    with Counting(served.access, model=slow, in_flight=6, timeout_s=60) as recognizer:
        assert len(recognizer.recognise(photos)) == 12
        assert recognizer.pauses > 0
        assert recognizer.calls.count("infer") == 12 + recognizer.pauses


def test_a_full_queue_is_told_at_the_deadline(served: Served, slow: str) -> None:
    photos = list(golden_images(40))
    with (
        Recognizer(served.access, model=slow, in_flight=12, timeout_s=0.4) as recognizer,
        pytest.raises((RequestRejected, RequestTimeout)),
    ):
        recognizer.recognise(photos)


def regions(served: Served) -> list[str]:
    """What the server holds of clients' memory."""
    with connect(served.access) as client:
        return [name for name in client.get_system_shared_memory_status().regions]


def left_in_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def test_shared_memory_is_given_back(served: Served) -> None:
    before = left_in_memory()
    with Recognizer(served.access, wire="shared memory", in_flight=3) as recognizer:
        recognizer.recognise(list(golden_images(16)) * 5)
        assert 0 < len(regions(served)) <= 3
        assert left_in_memory() == before  # a kill leaves nothing behind
    assert regions(served) == []


def test_shared_memory_is_given_back_after_errors(served: Served, slow: str) -> None:
    with (
        pytest.raises((RequestRejected, RequestTimeout)),
        Recognizer(served.access, model=slow, wire="shared memory", in_flight=12, timeout_s=0.5) as recognizer,
    ):
        recognizer.recognise(list(golden_images(40)))
    assert until(lambda: regions(served) == [], timeout_s=10)


def test_a_server_elsewhere_cannot_see_our_memory(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_in_memory()
    monkeypatch.setattr(Region, "key", "/psm_of_another_machine")
    with (
        Recognizer(served.access, wire="shared memory") as recognizer,
        pytest.raises(BadRequest, match="memory is not the server's: ask with wire='uint8'"),
    ):
        recognizer.recognise(list(golden_images(3)))
    assert left_in_memory() == before


def test_a_client_without_the_control_token_has_no_shared_memory(served: Served) -> None:
    access = replace(served.access, control_token="")
    with Recognizer(access, wire="shared memory") as recognizer, pytest.raises(Forbidden):
        recognizer.recognise(list(golden_images(1)))


def test_what_cannot_succeed_is_asked_once(served: Served, slow: str) -> None:
    for access, model, error in (
        (Access(served.access.url), "products", Forbidden),
        (served.access, "products-encoded", BadRequest),
    ):
        with Counting(access, model=model) as recognizer, pytest.raises(error):
            recognizer.recognise(list(golden_images(1)))
        assert recognizer.calls == ["get_model_config"]
        assert recognizer.pauses == 0
    with Recognizer(served.access, model="elsewhere", patience_s=0.1) as nobody, pytest.raises(ModelNotReady):
        nobody.recognise(list(golden_images(1)))
    with Counting(served.access, labels=lambda version: LABELS[:2]) as recognizer:
        with pytest.raises(BadRequest, match="more classes than the 2 labels"):
            recognizer.recognise(list(golden_images(8)))
        assert recognizer.calls.count("infer") == 1


def test_after_a_close_nothing_is_asked(served: Served) -> None:
    recognizer = Recognizer(served.access)
    recognizer.close()
    recognizer.close()
    with pytest.raises(BadRequest, match="after a close"):
        recognizer.recognise(list(golden_images(1)))

    async def ask() -> None:
        recognizer = AsyncRecognizer(served.access)
        await recognizer.recognise(list(golden_images(1)))
        await recognizer.close()
        with pytest.raises(BadRequest, match="after a close"):
            await recognizer.recognise(list(golden_images(1)))

    asyncio.run(ask())


def test_the_labels_are_those_of_the_version_that_answered(tmp_path: Path, local_server: MakeServer) -> None:
    """Both versions name their classes differently; a client that knows neither follows every switch."""
    repository = ModelRepository(tmp_path / "repository")
    for version in (1, 2):
        labels = [f"{version}: {label}" for label in LABELS]
        graph = write_graph(tmp_path / f"{version}.onnx", seed=version)
        repository.stage(graph, version=version, labels=labels, record={}, golden=golden_images())
    repository.configure([1])
    server = local_server(repository.root, tmp_path / "state")
    access = server.start().access
    stopping, found, photo = threading.Event(), list[Recognition](), golden_images(1)[0]

    def ask() -> None:
        while not stopping.is_set():  # a new client each time: none remembers anything
            with Recognizer(access) as recognizer:
                found.extend(recognizer.recognise([photo]))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with Endpoint(access) as endpoint:
            for version in (2, 1, 2):
                endpoint.switch(repository, version)
                seen = len(found)
                assert until(lambda: len(found) > seen + 3, timeout_s=60)  # noqa: B023
    finally:
        stopping.set()
        asking.join()
        server.stop()
    assert {answer.model_version for answer in found} == {1, 2}
    assert all(answer.ranked[0][0].startswith(f"{answer.model_version}: ") for answer in found)


def test_fifty_thousand_labels_are_told(tmp_path: Path, local_server: MakeServer) -> None:
    repository = ModelRepository(tmp_path / "repository")
    labels = [f"product {number:05}, of a brand, 500 g" for number in range(50_030)]
    stage_with(repository, tmp_path, labels)
    server = local_server(repository.root, tmp_path / "state")
    try:
        with Recognizer(server.start().access) as recognizer:
            [answer] = recognizer.recognise(list(golden_images(1)))
    finally:
        server.stop()
    assert answer.ranked[0][0] in labels


def stage_with(repository: ModelRepository, folder: Path, labels: Sequence[str]) -> None:
    repository.stage(write_graph(folder / "g.onnx"), version=1, labels=labels, record={}, golden=golden_images())
    repository.configure([1])


# From here on the server has lost the models that other tests loaded.


def start_anew(served: Served) -> None:
    """On the same ports, after a kill."""
    served.server.stop()
    served.running = served.server.start()


@pytest.mark.faults
@pytest.mark.parametrize("wire", WIRES)
def test_a_server_that_is_started_anew_is_waited_for(served: Served, wire: Wire) -> None:
    photos = list(golden_images(16)) * 30
    want = LocalRecognizer(served.graph).recognise(photos[:16])
    with Counting(served.access, wire=wire, timeout_s=120, patience_s=60) as recognizer:
        answers = recognizer.stream(photos)
        found = [next(answers) for _ in range(20)]
        os.kill(served.running.pid, signal.SIGKILL)
        starting = threading.Thread(target=start_anew, args=(served,))
        starting.start()
        found += answers
        starting.join()
        assert recognizer.pauses > 0
    assert [answer.ranked[0][0] for answer in found] == [want[place % 16].ranked[0][0] for place in range(480)]
    assert regions(served) == []


@pytest.mark.faults
def test_async_waits_for_a_server_too(served: Served) -> None:
    async def ask() -> int:
        async with AsyncRecognizer(served.access, timeout_s=120, patience_s=60) as recognizer:
            await recognizer.recognise(list(golden_images(1)))
            os.kill(served.running.pid, signal.SIGKILL)
            asking = asyncio.create_task(recognizer.recognise(list(golden_images(9))))
            await asyncio.to_thread(start_anew, served)
            return len(await asking)

    assert asyncio.run(ask()) == 9
