"""Recogniser against a real tritonserver: every kind of photo, every wire, sync and async, many at once, and faults."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving import (
    Access,
    AsyncRecognizer,
    LocalRecognizer,
    Recognition,
    Recognizer,
)
from serving.repository import ModelRepository
from serving.server import LocalServer, RunningServer
from serving.session import Wire
from tests.graphs import golden_images, stage

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
