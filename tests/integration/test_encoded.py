"""Photos as encoded bytes, decoded by a real server: the same answers, and a bad photo fails alone."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc

from pixels import MAX_PIXELS, decode, to_square
from serving.errors import BadRequest, GoldenMismatch, ModelNotReady, RequestTimeout
from serving.repository.encoded import MAX_PHOTO_BYTES, OUTPUTS
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.encoded_endpoint import EncodedEndpoint
from serving.server.server import LocalServer
from serving.wire import Answer, connect, infer_encoded
from tests.graphs import SIZE, K, golden_images, stage
from tests.served import Served, serve

pytestmark = pytest.mark.triton
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), local_server) as found:
        yield found


def ask(served: Served, *photos: bytes, outputs: tuple[str, ...] = ("ids", "probs", "known")) -> Answer:
    with connect(served.access) as client:
        return infer_encoded(client, photos, url="", model="products", outputs=outputs, timeout_s=20)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """100 x 60, of another colour in every corner."""
    x, y = np.meshgrid(np.linspace(0, 255, 100), np.linspace(0, 255, 60))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(gradient(), exif=exif)


def clear() -> Image.Image:
    image = gradient("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def deep() -> Image.Image:
    return Image.fromarray((np.linspace(0, 65535, 6000).reshape(60, 100)).astype(np.uint16))


PHOTOS = {
    "JPEG": encoded(gradient()),
    "PNG": encoded(gradient(), "PNG"),
    "WEBP": encoded(gradient(), "WEBP"),
    "GIF": encoded(gradient("P"), "GIF"),
    "turned": turned(),
    "transparent": encoded(clear(), "PNG"),
    "16 bit": encoded(deep(), "PNG"),
    "CMYK": encoded(gradient("CMYK")),
}
BAD = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "garbage": (bytes(range(256)) * 4, "not a picture in a format that can be read"),
    "truncated": (PHOTOS["JPEG"][:-200], "cannot be decoded"),
    "beheaded": (PHOTOS["JPEG"][20:], "not a picture in a format that can be read"),
    "bomb": (encoded(Image.new("1", (MAX_PIXELS // 1000, 1001)), "PNG"), "pixels is over the limit of 64,000,000"),
    "too many bytes": (PHOTOS["JPEG"] + bytes(MAX_PHOTO_BYTES), "bytes is over the limit of 33,554,432"),
}


def test_the_server_decodes_as_everybody_here_does(served: Served) -> None:
    found = ask(served, *PHOTOS.values(), outputs=("ids", "probs", "known", "embedding"))
    squares = np.stack([to_square(decode(photo), SIZE) for photo in PHOTOS.values()])
    want = served.ask(squares, outputs=("ids", "probs", "known", "embedding"))
    assert found.version == want.version == 1
    assert found.arrays["error"].tolist() == [[""]] * len(PHOTOS)
    assert found.arrays["version"].tolist() == [[1]] * len(PHOTOS)
    assert np.array_equal(found.arrays["ids"], want.arrays["ids"])
    for name in ("probs", "known", "embedding"):
        assert np.allclose(found.arrays[name], want.arrays[name], atol=1e-5)
    assert len(np.unique(found.arrays["probs"], axis=0)) > 4  # or any answer would do


@pytest.mark.faults
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_photo_fails_alone(served: Served, kind: str) -> None:
    photo, reason = BAD[kind]
    good = ask(served, PHOTOS["JPEG"], PHOTOS["PNG"]).arrays
    found = ask(served, PHOTOS["JPEG"], photo, PHOTOS["PNG"]).arrays
    assert reason in found["error"][1, 0]
    assert found["error"][[0, 2]].tolist() == [[""], [""]]
    assert found["version"].tolist() == [[1], [0], [1]]
    assert found["ids"][1].tolist() == [-1] * K
    assert not found["probs"][1].any()
    assert not found["known"][1].any()
    for name in ("ids", "probs", "known"):
        assert np.allclose(found[name][[0, 2]], good[name], atol=1e-5)


@pytest.mark.faults
def test_bad_photos_alone_are_an_answer_too(served: Served) -> None:
    found = ask(served, *[BAD["garbage"][0]] * 8, outputs=("ids", "embedding"))
    assert found.version == 0
    assert found.arrays["ids"].tolist() == [[-1] * K] * 8
    assert found.arrays["embedding"].shape == (8, 512)


@pytest.mark.faults
def test_bad_photos_do_not_spoil_requests_that_are_computed_with_them(served: Served) -> None:
    images = golden_images(30, seed=7)
    want = np.concatenate([served.ask(image[None]).arrays["ids"] for image in images])
    found: dict[int, Answer] = {}

    def send(number: int) -> None:
        bad = number % 3 == 0
        photo = BAD["truncated"][0] if bad else encoded(Image.fromarray(images[number]), "PNG")
        found[number] = ask(served, photo)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for number, answer in found.items():
        if number % 3:
            assert np.array_equal(answer.arrays["ids"][0], want[number])
        else:
            assert "cannot be decoded" in answer.arrays["error"][0, 0]


@pytest.mark.parametrize("wanted", [("ids",), ("error",), ("version",), ("embedding", "known"), tuple(OUTPUTS)])
def test_only_what_is_asked_for_comes(served: Served, wanted: tuple[str, ...]) -> None:
    photo = grpc.InferInput("photo", [1, 1], "BYTES")
    photo.set_data_from_numpy(np.array([[PHOTOS["JPEG"]]], object))
    with connect(served.access) as client:
        answer = client.infer("products-encoded", [photo], outputs=[grpc.InferRequestedOutput(name) for name in wanted])
    assert {output.name for output in answer.get_response().outputs} == set(wanted)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_or_too_many_photos_are_refused(served: Served, count: int) -> None:
    with pytest.raises(BadRequest):
        ask(served, *[PHOTOS["JPEG"]] * count)


def test_no_request_is_lost_while_versions_switch(served: Served) -> None:
    """And each answer is that of the version which it names."""
    photo = encoded(Image.fromarray(served.repository.golden(1).image[0]), "PNG")
    want = {version: served.repository.golden(version).ids[0] for version in (1, 2)}
    stopping, answers, faults = threading.Event(), [], []

    def loop() -> None:
        while not stopping.is_set():
            try:
                answers.append(ask(served, photo))
            except Exception as error:
                faults.append(error)

    def meet(version: int) -> bool:
        seen = len(answers)
        return process.until(lambda: version in {answer.version for answer in answers[seen:]}, timeout_s=30)

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2, 1):
            served.endpoint.switch(served.repository, version)
            assert meet(version)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert all(np.array_equal(answer.arrays["ids"][0], want[answer.version]) for answer in answers)


def test_its_golden_check_sees_another_model(served: Served) -> None:
    with EncodedEndpoint(served.access) as endpoint:
        endpoint.golden_check(served.repository, 1)
        with pytest.raises(GoldenMismatch, match="products-encoded version 2"):
            endpoint.golden_check(served.repository, 2)


@pytest.mark.faults
def test_from_the_first_version_to_a_killed_process(tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    repository = ModelRepository(tmp_path / "repository")
    server = local_server(repository.root, tmp_path / "state")
    started = server.start()
    try:
        with Endpoint(started.access) as endpoint, EncodedEndpoint(started.access) as encoding:
            served = Served(repository, server, endpoint, started.access)
            with pytest.raises(ModelNotReady, match="no version is served"):
                ask(served, PHOTOS["JPEG"])
            stage(repository, tmp_path, 1)
            endpoint.switch(repository, 1)
            assert ask(served, PHOTOS["JPEG"]).version == 1
            kill_stubs(server, "products-encoded")
            with pytest.raises((ModelNotReady, RequestTimeout)):
                ask(served, PHOTOS["JPEG"])
            endpoint.golden_check(repository, 1)  # the other model goes on
            assert encoding.heal(repository)
            assert not encoding.heal(repository)
            kill_stubs(server, "products")
            with pytest.raises((ModelNotReady, RequestTimeout)):
                ask(served, PHOTOS["JPEG"])
            assert endpoint.heal(repository)
            assert ask(served, PHOTOS["JPEG"]).version == 1
    finally:
        process.kill([started.pid])  # asked nicely, it would wait for the processes it lost
        server.stop()


def kill_stubs(server: LocalServer, model: str) -> None:
    """kill -9 of every process of this server that computes for a model."""
    state = str(server.state)
    found = [pid for pid, argv in process.commands() if argv[0].startswith(state) and f"/{model}/" in argv[1]]
    assert found
    process.kill(found)
