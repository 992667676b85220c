"""Every exception that a library raises between a photo and an answer becomes an error of serving."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tritonclient.utils import InferenceServerException

from pixels import BadPhoto
from serving import (
    AsyncRecognizer,
    BadRequest,
    LocalRecognizer,
    Recognition,
    Recognizer,
    ServerUnavailable,
    ServingError,
)
from serving.client.retry import Retry
from serving.errors import RequestRejected, RequestTimeout
from serving.repository.repository import ModelRepository
from serving.wire import errors_named
from tests.graphs import golden_images

MESSAGES = (
    "",
    "Socket closed",
    "Exceeds maximum queue size",
    "Deadline Exceeded",
    "unexpected shape",
    "ssl handshake failed",
)


@pytest.mark.parametrize("status", [None, *map(str, grpc.StatusCode)])
@pytest.mark.parametrize("message", MESSAGES)
def test_every_status_has_a_name(status: str | None, message: str) -> None:
    with pytest.raises(ServingError, match="host:1"), errors_named("host:1"):
        raise InferenceServerException(message, status)


@pytest.mark.parametrize(
    "error",
    [
        grpc.RpcError(),
        grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata()),
        grpc.aio.UsageError("Channel is closed."),
        grpc.aio.InternalError("broken"),
        ValueError("Cannot invoke RPC on closed channel!"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_slips_through_tritonclient_has_a_name(error: Exception) -> None:
    with pytest.raises(ServingError, match="host:1"), errors_named("host:1"):
        raise error


ANY_PHOTO = st.one_of(
    st.none(),
    st.integers(),
    st.binary(max_size=64),
    st.binary(max_size=64).map(lambda tail: b"\xff\xd8\xff\xe0" + tail),
    st.text(max_size=20),
    st.text(max_size=20).map(Path),
    hnp.arrays(st.sampled_from([np.uint8, np.float32, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"]).map(lambda mode: Image.new(mode, (3, 2))),
    st.just(Image.new("RGB", (0, 4))),
)  # fmt: skip


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> LocalRecognizer:
    from tests.graphs import write_graph

    return LocalRecognizer(write_graph(tmp_path_factory.mktemp("graph") / "model.onnx"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(photos=st.lists(ANY_PHOTO, max_size=12))
def test_any_photo_gets_an_answer_or_a_reason(recognizer: LocalRecognizer, photos: list[Any]) -> None:
    answers = list(recognizer.stream(photos))
    assert len(answers) == len(photos)
    assert all(isinstance(answer, Recognition | BadPhoto) for answer in answers)


def test_the_same_picture_many_times_in_many_threads(recognizer: LocalRecognizer, tmp_path: Path) -> None:
    Image.fromarray(golden_images(1, size=300)[0]).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:  # read when it is first looked at
        answers = recognizer.recognise([image] * 64)
    assert len(set(answers)) == 1


def ask(url: str, **options: Any) -> None:
    with Recognizer(url, **options) as recognizer:
        recognizer.recognise(list(golden_images(1)))


async def ask_async(url: str, **options: Any) -> None:
    async with AsyncRecognizer(url, **options) as recognizer:
        await recognizer.recognise(list(golden_images(1)))


@pytest.mark.parametrize(
    "url", ["", "nowhere", "nowhere.invalid:8001", ":", "127.0.0.1:99999", "http://x", "ä b:1", "grpcs://x:1"]
)
def test_an_address_that_leads_nowhere(url: str) -> None:
    with pytest.raises(ServingError):
        ask(url, timeout_s=2, patience_s=0.1)
    with pytest.raises(ServingError):
        asyncio.run(ask_async(url, timeout_s=2, patience_s=0.1))


@pytest.fixture(
    params=[b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)) * 10, None],
    ids=["closes", "http", "noise", "silent"],
)
def other_program(request: pytest.FixtureRequest) -> Iterator[str]:
    """Port of another program: it sends some bytes and closes the connection, or sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                if request.param is not None:
                    connection.sendall(request.param)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in held:
        connection.close()


def test_another_program_at_the_port(other_program: str) -> None:
    with pytest.raises(ServingError, match=other_program):
        ask(other_program, timeout_s=1, patience_s=0.2)
    with pytest.raises(ServingError, match=other_program):
        asyncio.run(ask_async(other_program, timeout_s=1, patience_s=0.2))


def test_a_server_that_is_down_is_reported_long_before_the_deadline(unused_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{unused_port}"):
        ask(f"127.0.0.1:{unused_port}", timeout_s=60)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("keyword", ["transport", "wire"])  # `wire` is the keyword of the previous release
def test_an_unknown_transport_is_refused(keyword: str) -> None:
    with pytest.raises(BadRequest, match="transport 'jpg' is unknown; use one of uint8, encoded, shared memory"):
        Recognizer("host:1", **{keyword: "jpg"})


def test_a_graph_that_fails_in_mid_run_is_named(staged: ModelRepository, tmp_path: Path) -> None:
    recognizer = LocalRecognizer(staged.path(1) / "model.onnx")
    recognizer._size = 7  # as if the file had been another one
    with pytest.raises(ServingError, match=r"model\.onnx cannot answer here"):
        recognizer.recognise(list(golden_images(1)))


def test_pauses_grow_and_end_with_the_deadline() -> None:
    retry = Retry(timeout_s=30, patience_s=5)
    pauses = [retry.pause_s(RequestRejected("full")) for _ in range(200)]
    assert max(pauses[:2]) <= 0.1
    assert 0.5 < max(pauses) <= 1.0
    for error in (RequestTimeout("late"), BadRequest("wrong")):
        with pytest.raises(type(error)):
            retry.pause_s(error)
    over = Retry(timeout_s=0, patience_s=5)
    with pytest.raises(RequestRejected):
        over.pause_s(RequestRejected("full"))
    away = Retry(timeout_s=30, patience_s=0)
    with pytest.raises(ServerUnavailable):
        away.pause_s(ServerUnavailable("away"))
