"""Recogniser against a real tritonserver that is overloaded, killed, on another machine or lacks the model."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from serving import (
    Access,
    AsyncRecognizer,
    BadRequest,
    Forbidden,
    LocalRecognizer,
    ModelNotReady,
    Recognizer,
    RequestRejected,
    RequestTimeout,
)
from serving.client.session import Transport
from serving.client.shared_memory import Region
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.process import until
from serving.wire import connect
from tests.clients import RecordingRecognizer, Upstream
from tests.graphs import LABELS, golden_images, write_versions

pytestmark = pytest.mark.triton
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


@pytest.fixture(scope="module")
def slow(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a second model in the same server: about 150 ms per photo, and a queue for one request."""
    repository = ModelRepository(upstream.repository.root, "slow", joined=1, instances=1)
    write_versions(repository, tmp_path_factory.mktemp("slow"), 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=1).to_pbtxt())
    with Endpoint(upstream.access, model="slow") as endpoint:
        endpoint.load()
    return "slow"


def test_requests_to_a_full_queue_are_sent_again(upstream: Upstream, slow: str) -> None:
    photos = list(golden_images(12))
    with RecordingRecognizer(upstream.access, model=slow, in_flight=6, timeout_s=60) as recognizer:
        assert len(recognizer.recognise(photos)) == 12
        assert recognizer.pauses > 0
        assert recognizer.calls.count("infer") == 12 + recognizer.pauses


def test_a_full_queue_is_an_error_at_the_deadline(upstream: Upstream, slow: str) -> None:
    photos = list(golden_images(40))
    with (
        Recognizer(upstream.access, model=slow, in_flight=12, timeout_s=0.4) as recognizer,
        pytest.raises((RequestRejected, RequestTimeout)),
    ):
        recognizer.recognise(photos)


def regions(upstream: Upstream) -> list[str]:
    """Names of the clients' shared memory regions that are registered with the server."""
    with connect(upstream.access) as client:
        return [name for name in client.get_system_shared_memory_status().regions]


def shared_memory_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def test_shared_memory_is_released(upstream: Upstream) -> None:
    before = shared_memory_files()
    with Recognizer(upstream.access, transport="shared memory", in_flight=3) as recognizer:
        recognizer.recognise(list(golden_images(16)) * 5)
        assert 0 < len(regions(upstream)) <= 3
        assert shared_memory_files() == before  # a kill leaves nothing behind
    assert regions(upstream) == []


def test_shared_memory_is_released_after_errors(upstream: Upstream, slow: str) -> None:
    with (
        pytest.raises((RequestRejected, RequestTimeout)),
        Recognizer(upstream.access, model=slow, transport="shared memory", in_flight=12, timeout_s=0.5) as recognizer,
    ):
        recognizer.recognise(list(golden_images(40)))
    assert until(lambda: regions(upstream) == [], timeout_s=10)


def test_a_server_that_cannot_see_our_memory_gets_the_photos_as_uint8(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, photos = shared_memory_files(), list(golden_images(16)) * 3
    with Recognizer(upstream.access) as recognizer:
        expected = recognizer.recognise(photos)
    monkeypatch.setattr(Region, "key", "/psm_of_another_machine")
    with Recognizer(upstream.access, transport="shared memory", in_flight=3) as recognizer:
        assert recognizer.recognise(photos) == expected
        assert recognizer.recognise(photos) == expected
    (warning,) = [each.getMessage() for each in caplog.records if each.name == "serving.client.session"]
    assert warning.startswith("the server refuses shared memory, so photos travel as uint8: ")
    assert shared_memory_files() == before


def test_a_client_without_the_control_token_sends_uint8(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    access = replace(upstream.access, control_token="")
    with Recognizer(access, transport="shared memory") as recognizer:
        assert len(recognizer.recognise(list(golden_images(1)))) == 1
    assert "requires another token" in caplog.text
    assert regions(upstream) == []


def test_a_request_that_cannot_succeed_is_sent_once(upstream: Upstream, slow: str) -> None:
    for access, model, error in (
        (Access(upstream.access.url), "products", Forbidden),
        (upstream.access, "products-encoded", BadRequest),
    ):
        with RecordingRecognizer(access, model=model) as recognizer, pytest.raises(error):
            recognizer.recognise(list(golden_images(1)))
        assert recognizer.calls == ["get_model_config"]
        assert recognizer.pauses == 0
    with Recognizer(upstream.access, model="elsewhere", patience_s=0.1) as recognizer, pytest.raises(ModelNotReady):
        recognizer.recognise(list(golden_images(1)))
    with RecordingRecognizer(upstream.access, labels=lambda version: LABELS[:2]) as recognizer:
        with pytest.raises(BadRequest, match="more classes than the 2 labels passed"):
            recognizer.recognise(list(golden_images(8)))
        assert recognizer.calls.count("infer") == 1


def test_a_closed_recogniser_refuses_photos(upstream: Upstream) -> None:
    recognizer = Recognizer(upstream.access)
    recognizer.close()
    recognizer.close()
    with pytest.raises(BadRequest, match="after a close"):
        recognizer.recognise(list(golden_images(1)))

    async def recognise_after_close() -> None:
        recognizer = AsyncRecognizer(upstream.access)
        await recognizer.recognise(list(golden_images(1)))
        await recognizer.close()
        with pytest.raises(BadRequest, match="after a close"):
            await recognizer.recognise(list(golden_images(1)))

    asyncio.run(recognise_after_close())


# The next tests restart the server, which then lacks the models that the tests above loaded.


def restart(upstream: Upstream) -> None:
    """Restarts the server on the same ports after a kill."""
    upstream.server.stop()
    upstream.running = upstream.server.start()


@pytest.mark.faults
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_restarted_server_is_waited_for(upstream: Upstream, transport: Transport) -> None:
    photos = list(golden_images(16)) * 30
    expected = LocalRecognizer(upstream.graph).recognise(photos[:16])
    with RecordingRecognizer(upstream.access, transport=transport, timeout_s=120, patience_s=60) as recognizer:
        answers = recognizer.stream(photos)
        found = [next(answers) for _ in range(20)]
        os.kill(upstream.running.pid, signal.SIGKILL)
        starting = threading.Thread(target=restart, args=(upstream,))
        starting.start()
        found += answers
        starting.join()
        assert recognizer.pauses > 0
    assert [answer.ranked[0][0] for answer in found] == [expected[number % 16].ranked[0][0] for number in range(480)]
    assert regions(upstream) == []


@pytest.mark.faults
def test_async_waits_for_a_server_too(upstream: Upstream) -> None:
    async def recognise() -> int:
        async with AsyncRecognizer(upstream.access, timeout_s=120, patience_s=60) as recognizer:
            await recognizer.recognise(list(golden_images(1)))
            os.kill(upstream.running.pid, signal.SIGKILL)
            request = asyncio.create_task(recognizer.recognise(list(golden_images(9))))
            await asyncio.to_thread(restart, upstream)
            return len(await request)

    assert asyncio.run(recognise()) == 9
