"""Recogniser against a real tritonserver: every kind of photo, every transport, sync and async, many at once, and labels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pixels import BadPhoto
from serving import Access, AsyncRecognizer, LocalRecognizer, Recognition, Recognizer
from serving.client.session import Transport
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.process import until
from serving.server.server import LocalServer
from tests.clients import RecordingRecognizer, Upstream, jpeg, png
from tests.graphs import LABELS, golden_images, write_graph

pytestmark = pytest.mark.triton
MakeServer = Callable[..., LocalServer]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


def photos_of_every_kind(folder: Path) -> list[Any]:
    """21 photos in three batches: paths, bytes, arrays and Pillow images of several sizes."""
    images = golden_images(21, size=40, seed=3)
    photos: list[Any] = []
    for number, image in enumerate(images):
        image = image[: 20 + number]
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(image))
        photos.append((path, str(path), jpeg(image), png(image), image, Image.fromarray(image))[number % 6])
    return photos


def recognise_async(access: Access, photos: Sequence[Any], **options: Any) -> list[Recognition]:
    async def recognise() -> list[Recognition]:
        async with AsyncRecognizer(access, **options) as recognizer:
            return await recognizer.recognise(photos, embedding=True)

    return asyncio.run(recognise())


def recognise_sync(access: Access, photos: Sequence[Any], **options: Any) -> list[Recognition]:
    with Recognizer(access, **options) as recognizer:
        return recognizer.recognise(photos, embedding=True)


def assert_same(found: Sequence[Any], local: Sequence[Any]) -> None:
    assert len(found) == len(local)
    for answer, expected in zip(found, local, strict=True):
        assert [label for label, _ in answer.ranked] == [label for label, _ in expected.ranked]
        assert np.allclose([p for _, p in answer.ranked], [p for _, p in expected.ranked], atol=1e-5)
        assert np.allclose(answer.embedding, expected.embedding, atol=1e-4)
        assert answer.score == pytest.approx(expected.score, abs=1e-5)
        assert (answer.model_version, answer.data_version) == (1, "data1")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("recognise", [recognise_sync, recognise_async], ids=["sync", "async"])
def test_an_address_is_enough_and_answers_equal_local_onnx_runtime(
    upstream: Upstream, tmp_path: Path, recognise: Callable[..., list[Recognition]], transport: Transport
) -> None:
    photos = photos_of_every_kind(tmp_path)
    local = LocalRecognizer(upstream.graph).recognise(photos, embedding=True)
    assert_same(recognise(upstream.access, photos, transport=transport), local)
    assert len({answer.ranked[0][0] for answer in local}) > 1
    assert recognise(upstream.access, [], transport=transport) == []


def photos_and_bad_photos(folder: Path) -> tuple[list[Any], list[int]]:
    """Photos of every kind with bad photos among them, and the positions of the bad ones."""
    photos = photos_of_every_kind(folder)
    bad = {0: b"", 5: b"not a photo", 9: folder / "absent.jpg", 13: jpeg(golden_images(1, size=40)[0])[:200], 20: 7}
    for position, photo in bad.items():
        photos[position] = photo
    return photos, sorted(bad)


async def stream_async(access: Access, photos: Sequence[Any], **options: Any) -> list[Any]:
    async with AsyncRecognizer(access, **options) as recognizer:
        return [answer async for answer in recognizer.stream(photos, embedding=True)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_bad_photo_is_an_answer_at_its_position(upstream: Upstream, tmp_path: Path, transport: Transport) -> None:
    photos, bad = photos_and_bad_photos(tmp_path)
    good = [photo for position, photo in enumerate(photos) if position not in bad]
    local = LocalRecognizer(upstream.graph).recognise(good, embedding=True)
    with Recognizer(upstream.access, transport=transport) as recognizer:
        found = list(recognizer.stream(iter(photos), embedding=True))
        with pytest.raises(BadPhoto, match="photo 0: the file is empty"):
            recognizer.recognise(photos)
    for answers in (
        found,
        asyncio.run(stream_async(upstream.access, photos, transport=transport)),
        list(LocalRecognizer(upstream.graph).stream(photos, embedding=True)),
    ):
        reasons = [answer for answer in answers if isinstance(answer, BadPhoto)]
        assert [number for number, answer in enumerate(answers) if isinstance(answer, BadPhoto)] == bad
        assert all(str(reason).endswith("; leave it out or replace it") for reason in reasons)
        assert str(reasons[0]).startswith("photo 0: the file is empty")
        assert str(reasons[2]).startswith(f"{tmp_path / 'absent.jpg'}: No such file")
        assert reasons[2].reason == "No such file or directory"
        found_good = [replace(answer, model_version=1) for answer in answers if isinstance(answer, Recognition)]
        assert_same(found_good, local_as_version_1(local))


def local_as_version_1(local: Sequence[Recognition]) -> list[Recognition]:
    return [replace(answer, model_version=1) for answer in local]


def test_a_slow_reader_slows_the_reading_of_photos(upstream: Upstream) -> None:
    photo, taken, progress = png(golden_images(1)[0]), 0, []

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield photo

    with RecordingRecognizer(upstream.access, in_flight=3) as recognizer:
        answers = recognizer.stream(endless(), progress=progress.append)
        next(answers)
        assert until(lambda: recognizer.in_progress == 0, timeout_s=30)
        assert taken == 2 * 3 * 8  # reads ahead up to the limit, and no further while the caller does not read
        for _ in range(200):
            next(answers)
        assert taken <= 201 + 2 * 3 * 8
        answers.close()
        assert 1 < recognizer.max_in_progress <= 3
    assert progress == list(range(8, 201, 8))


def test_a_close_ends_streams_that_are_not_read_to_the_end(upstream: Upstream) -> None:
    """Otherwise their threads would use a closed connection, and wait for readers for ever."""
    photos = [png(golden_images(1)[0])] * 200
    with Recognizer(upstream.access, in_flight=2) as recognizer:
        answers = recognizer.stream(photos)
        next(answers)
    assert next(answers, None) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recognise")]

    async def stream_and_close() -> None:
        async with AsyncRecognizer(upstream.access, in_flight=2) as recognizer:
            answers = recognizer.stream(photos)
            await anext(answers)
        assert await anext(answers, None) is None

    asyncio.run(stream_and_close())


def test_async_tasks_are_bounded_too(upstream: Upstream) -> None:
    photo, taken = png(golden_images(1)[0]), 0

    def photos() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield photo

    async def read_slowly() -> int:
        async with AsyncRecognizer(upstream.access, in_flight=2) as recognizer:
            answers = recognizer.stream(photos())
            await anext(answers)
            await asyncio.sleep(0.3)
            assert taken == 2 * 8
            return 1 + len([answer async for answer in answers])

    assert asyncio.run(read_slowly()) == 100


def test_the_labels_are_those_of_the_version_that_answered(tmp_path: Path, local_server: MakeServer) -> None:
    """The two versions name their classes differently; a client that knows neither follows every switch."""
    repository = ModelRepository(tmp_path / "repository")
    for version in (1, 2):
        labels = [f"{version}: {label}" for label in LABELS]
        graph = write_graph(tmp_path / f"{version}.onnx", seed=version)
        repository.write(graph, version=version, labels=labels, lineage={}, golden=golden_images())
    repository.configure([1])
    server = local_server(repository.root, tmp_path / "state")
    access = server.start().access
    stopping, found, photo = threading.Event(), list[Recognition](), golden_images(1)[0]

    def recognise() -> None:
        while not stopping.is_set():  # a new client each time, so that none knows labels from before
            with Recognizer(access) as recognizer:
                found.extend(recognizer.recognise([photo]))

    client = threading.Thread(target=recognise)
    client.start()
    try:
        with Endpoint(access) as endpoint:
            for version in (2, 1, 2):
                endpoint.switch(repository, version)
                before = len(found)
                assert until(lambda: len(found) > before + 3, timeout_s=60)  # noqa: B023
    finally:
        stopping.set()
        client.join()
        server.stop()
    assert {answer.model_version for answer in found} == {1, 2}
    assert all(answer.ranked[0][0].startswith(f"{answer.model_version}: ") for answer in found)


def test_fifty_thousand_labels_reach_the_client(tmp_path: Path, local_server: MakeServer) -> None:
    repository = ModelRepository(tmp_path / "repository")
    labels = [f"product {number:05}, of a brand, 500 g" for number in range(50_030)]
    write_version(repository, tmp_path, labels)
    assert len(repository.configuration().encode()) <= sum(map(len, labels)) + 5 * len(labels) + 5000
    server = local_server(repository.root, tmp_path / "state")
    try:
        with Recognizer(server.start().access) as recognizer:
            [answer] = recognizer.recognise(list(golden_images(1)))
    finally:
        server.stop()
    assert answer.ranked[0][0] in labels


def write_version(repository: ModelRepository, folder: Path, labels: Sequence[str]) -> None:
    repository.write(write_graph(folder / "g.onnx"), version=1, labels=labels, lineage={}, golden=golden_images())
    repository.configure([1])
