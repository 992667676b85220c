"""Encoded photos, decoded by a real server: the answers are the same, and a bad photo fails alone."""

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
from tests.graphs import SIZE, K, golden_images, write_versions
from tests.triton import Triton, triton_with_two_versions

pytestmark = pytest.mark.triton
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    with triton_with_two_versions(tmp_path_factory.mktemp("triton"), local_server) as triton:
        yield triton


def recognise(triton: Triton, *photos: bytes, outputs: tuple[str, ...] = ("ids", "probs", "known")) -> Answer:
    with connect(triton.access) as client:
        return infer_encoded(client, photos, url="", model="products", outputs=outputs, timeout_s=20)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """100 x 60 picture with a different colour in every corner."""
    x, y = np.meshgrid(np.linspace(0, 255, 100), np.linspace(0, 255, 60))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(gradient(), exif=exif)


def transparent() -> Image.Image:
    image = gradient("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def deep_grey() -> Image.Image:
    return Image.fromarray((np.linspace(0, 65535, 6000).reshape(60, 100)).astype(np.uint16))


PHOTOS = {
    "JPEG": encoded(gradient()),
    "PNG": encoded(gradient(), "PNG"),
    "WEBP": encoded(gradient(), "WEBP"),
    "GIF": encoded(gradient("P"), "GIF"),
    "rotated_jpeg": rotated_jpeg(),
    "transparent": encoded(transparent(), "PNG"),
    "16 bit": encoded(deep_grey(), "PNG"),
    "CMYK": encoded(gradient("CMYK")),
}
BAD = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "garbage": (bytes(range(256)) * 4, "not a picture in a format that can be read"),
    "truncated": (PHOTOS["JPEG"][:-200], "the file is damaged"),
    "beheaded": (PHOTOS["JPEG"][20:], "not a picture in a format that can be read"),
    "bomb": (encoded(Image.new("1", (MAX_PIXELS // 1000, 1001)), "PNG"), "pixels is over the limit of 64,000,000"),
    "too many bytes": (PHOTOS["JPEG"] + bytes(MAX_PHOTO_BYTES), "bytes is over the limit of 33,554,432"),
}


def test_the_server_decodes_as_all_other_code_does(triton: Triton) -> None:
    found = recognise(triton, *PHOTOS.values(), outputs=("ids", "probs", "known", "embedding"))
    squares = np.stack([to_square(decode(photo), SIZE) for photo in PHOTOS.values()])
    expected = triton.infer(squares, outputs=("ids", "probs", "known", "embedding"))
    assert found.version == expected.version == 1
    assert found.arrays["error"].tolist() == [[""]] * len(PHOTOS)
    assert found.arrays["version"].tolist() == [[1]] * len(PHOTOS)
    assert np.array_equal(found.arrays["ids"], expected.arrays["ids"])
    for name in ("probs", "known", "embedding"):
        assert np.allclose(found.arrays[name], expected.arrays[name], atol=1e-5)
    assert len(np.unique(found.arrays["probs"], axis=0)) > 4, "the answers differ"


@pytest.mark.faults
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_photo_fails_alone(triton: Triton, kind: str) -> None:
    photo, reason = BAD[kind]
    good = recognise(triton, PHOTOS["JPEG"], PHOTOS["PNG"]).arrays
    found = recognise(triton, PHOTOS["JPEG"], photo, PHOTOS["PNG"]).arrays
    assert reason in found["error"][1, 0]
    assert found["error"][[0, 2]].tolist() == [[""], [""]]
    assert found["version"].tolist() == [[1], [0], [1]]
    assert found["ids"][1].tolist() == [-1] * K
    assert not found["probs"][1].any()
    assert not found["known"][1].any()
    for name in ("ids", "probs", "known"):
        assert np.allclose(found[name][[0, 2]], good[name], atol=1e-5)


@pytest.mark.faults
def test_a_request_of_bad_photos_only_is_answered(triton: Triton) -> None:
    found = recognise(triton, *[BAD["garbage"][0]] * 8, outputs=("ids", "embedding"))
    assert found.version == 0
    assert found.arrays["ids"].tolist() == [[-1] * K] * 8
    assert found.arrays["embedding"].shape == (8, 512)


@pytest.mark.faults
def test_bad_photos_do_not_affect_other_requests_of_their_batch(triton: Triton) -> None:
    images = golden_images(30, seed=7)
    expected = np.concatenate([triton.infer(image[None]).arrays["ids"] for image in images])
    found: dict[int, Answer] = {}

    def send(number: int) -> None:
        bad = number % 3 == 0
        photo = BAD["truncated"][0] if bad else encoded(Image.fromarray(images[number]), "PNG")
        found[number] = recognise(triton, photo)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for number, answer in found.items():
        if number % 3:
            assert np.array_equal(answer.arrays["ids"][0], expected[number])
        else:
            assert "the file is damaged" in answer.arrays["error"][0, 0]


@pytest.mark.parametrize("wanted", [("ids",), ("error",), ("version",), ("embedding", "known"), tuple(OUTPUTS)])
def test_only_the_requested_outputs_are_returned(triton: Triton, wanted: tuple[str, ...]) -> None:
    photo = grpc.InferInput("photo", [1, 1], "BYTES")
    photo.set_data_from_numpy(np.array([[PHOTOS["JPEG"]]], object))
    with connect(triton.access) as client:
        answer = client.infer("products-encoded", [photo], outputs=[grpc.InferRequestedOutput(name) for name in wanted])
    assert {output.name for output in answer.get_response().outputs} == set(wanted)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_or_too_many_photos_are_refused(triton: Triton, count: int) -> None:
    with pytest.raises(BadRequest):
        recognise(triton, *[PHOTOS["JPEG"]] * count)


def test_no_request_is_lost_while_versions_switch(triton: Triton) -> None:
    """Each answer is that of the version that it names."""
    photo = encoded(Image.fromarray(triton.repository.golden(1).image[0]), "PNG")
    expected = {version: triton.repository.golden(version).ids[0] for version in (1, 2)}
    stopping, answers, faults = threading.Event(), [], []

    def send_requests() -> None:
        while not stopping.is_set():
            try:
                answers.append(recognise(triton, photo))
            except Exception as error:
                faults.append(error)

    def wait_for_answer(version: int) -> bool:
        before = len(answers)
        return process.until(lambda: version in {answer.version for answer in answers[before:]}, timeout_s=30)

    threads = [threading.Thread(target=send_requests) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2, 1):
            triton.endpoint.switch(triton.repository, version)
            assert wait_for_answer(version)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert all(np.array_equal(answer.arrays["ids"][0], expected[answer.version]) for answer in answers)


def test_the_golden_check_notices_another_model(triton: Triton) -> None:
    with EncodedEndpoint(triton.access) as endpoint:
        endpoint.golden_check(triton.repository, 1)
        with pytest.raises(GoldenMismatch, match="products-encoded version 2"):
            endpoint.golden_check(triton.repository, 2)


@pytest.mark.faults
def test_first_version_and_killed_processes(tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    repository = ModelRepository(tmp_path / "repository")
    server = local_server(repository.root, tmp_path / "state")
    started = server.start()
    try:
        with Endpoint(started.access) as endpoint, EncodedEndpoint(started.access) as encoded_endpoint:
            triton = Triton(repository, server, endpoint, started.access)
            with pytest.raises(ModelNotReady, match="no version is served"):
                recognise(triton, PHOTOS["JPEG"])
            write_versions(repository, tmp_path, 1)
            endpoint.switch(repository, 1)
            assert recognise(triton, PHOTOS["JPEG"]).version == 1
            kill_stubs(server, "products-encoded")
            with pytest.raises((ModelNotReady, RequestTimeout)):
                recognise(triton, PHOTOS["JPEG"])
            endpoint.golden_check(repository, 1)  # the other model still answers
            assert encoded_endpoint.heal(repository)
            assert not encoded_endpoint.heal(repository)
            kill_stubs(server, "products")
            with pytest.raises((ModelNotReady, RequestTimeout)):
                recognise(triton, PHOTOS["JPEG"])
            assert endpoint.heal(repository)
            assert recognise(triton, PHOTOS["JPEG"]).version == 1
    finally:
        process.kill([started.pid])  # a normal stop would wait for the killed processes
        server.stop()


def kill_stubs(server: LocalServer, model: str) -> None:
    """Kills every process of this server that computes for the model."""
    state = str(server.state)
    found = [pid for pid, argv in process.commands() if argv[0].startswith(state) and f"/{model}/" in argv[1]]
    assert found
    process.kill(found)
