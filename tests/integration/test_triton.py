"""A real tritonserver: answers, malformed requests, switches under load, broken versions."""

from __future__ import annotations

import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving import LocalRecognizer, Recognizer
from serving.errors import (
    AlreadyRunning,
    BadRequest,
    ContractChanged,
    CorruptVersion,
    GoldenMismatch,
    ModelNotReady,
    PortInUse,
    RequestRejected,
    RequestTimeout,
    ServingError,
)
from serving.repository.candidate import candidate_files
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.control import Endpoint
from serving.server.server import LocalServer, running
from serving.wire import Answer, connect
from tests.graphs import LABELS, SIZE, golden_images, make_endless, sign, stage, write_graph
from tests.served import Served, closed_loop, serve

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
MakeServer = Callable[..., LocalServer]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_server: MakeServer) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), local_server) as found:
        yield found


@pytest.fixture(autouse=True)
def _version_1(request: pytest.FixtureRequest) -> None:
    """Every test of the shared server begins with version 1."""
    if "served" in request.fixturenames:
        found = request.getfixturevalue("served")
        if found.endpoint.active() != (1,):
            found.endpoint.switch(found.repository, 1)


def photo(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_answers_equal_local_onnx_runtime(served: Served) -> None:
    images = golden_images(19, seed=5)
    photos = [photo(image) for image in images]
    with Recognizer(served.access, labels=served.repository.labels) as recognizer:
        found = recognizer.recognise(photos, embedding=True)
    local = LocalRecognizer(served.repository.path(1) / "model.onnx").recognise(photos, embedding=True)
    for one, other in zip(found, local, strict=True):
        assert [label for label, _ in one.ranked] == [label for label, _ in other.ranked]
        assert np.allclose([p for _, p in one.ranked], [p for _, p in other.ranked], atol=1e-5)
        assert np.allclose(one.embedding, other.embedding, atol=1e-4)
        assert (one.model_version, one.data_version) == (1, "data1")
    assert len({one.ranked[0][0] for one in found}) > 1  # different photos do get different answers


def test_golden_check_sees_another_model(served: Served) -> None:
    served.endpoint.golden_check(served.repository, 1)
    with swapped(served.repository.path(1) / "golden.npz", served.repository.path(2) / "golden.npz"):
        sign(served.repository.path(1))
        with pytest.raises(GoldenMismatch, match="version 1, golden image 0"):
            served.endpoint.golden_check(served.repository, 1)
    sign(served.repository.path(1))


def test_several_requests_are_answered_each_its_own(served: Served) -> None:
    images = golden_images(24, seed=9)
    want = [served.ask(image[None]).arrays for image in images]
    found: dict[int, Answer] = {}

    def ask(number: int) -> None:
        found[number] = served.ask(images[number : number + 1 + number % 3])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in found.items():
        for row, (ids, probs) in enumerate(zip(answer.arrays["ids"], answer.arrays["probs"], strict=True)):
            assert np.array_equal(ids, want[number + row]["ids"][0])
            assert np.allclose(probs, want[number + row]["probs"][0], atol=1e-5)
    assert len(found) == 22


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, SIZE + 1, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, SIZE, SIZE, 3), np.int64),
        np.zeros((1, SIZE, SIZE, 3), np.complex64),
        np.zeros((9, SIZE, SIZE, 3), np.uint8),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
    ],
    ids=["side", "rank", "no batch", "float", "int64", "complex", "batch of 9", "batch of 0"],
)
def test_a_malformed_request_is_refused_and_the_server_lives(served: Served, image: NDArray) -> None:
    with pytest.raises(BadRequest) as caught:
        served.ask(image)
    assert isinstance(caught.value, ValueError)
    served.endpoint.golden_check(served.repository, 1)


def test_unknown_models_and_versions(served: Served) -> None:
    for wrong in ({"model": "elsewhere"}, {"version": "9"}):
        with pytest.raises(ModelNotReady, match=r"9|elsewhere"):
            served.ask(golden_images(1), **wrong)


@pytest.fixture(scope="module")
def slow(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second model in the same server: about 150 ms per photo, and room for one request to wait."""
    repository = ModelRepository(served.repository.root, "slow", max_batch_size=1, instances=1)
    stage(repository, tmp_path_factory.mktemp("slow"), 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=1).to_pbtxt())
    with Endpoint(served.access, model="slow") as endpoint:
        endpoint.load()
        endpoint.golden_check(repository, 1)
    return "slow"


def test_a_deadline_is_kept(served: Served, slow: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestTimeout):
        served.ask(golden_images(1), model=slow, timeout_s=0.03)
    assert time.monotonic() - start < 1.0


def test_a_full_queue_rejects_at_once(served: Served, slow: str) -> None:
    outcomes: list[ServingError | Answer] = []

    def ask() -> None:
        try:
            outcomes.append(served.ask(golden_images(1), model=slow))
        except ServingError as error:
            outcomes.append(error)

    def kinds() -> set[type]:
        return {type(outcome) for outcome in outcomes}

    for _ in range(10):  # the request that ran into its deadline may still hold the queue
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(kinds()) > 1:
            break
        time.sleep(0.5)
    assert kinds() == {RequestRejected, Answer}, outcomes


def test_no_request_is_lost_while_versions_switch(served: Served) -> None:
    with closed_loop(served) as load:
        for version in (2, 1, 2, 1):
            served.endpoint.switch(served.repository, version)
            assert served.endpoint.active() == served.repository.configured() == (version,)
            assert load.meet(version, more=50)
    assert load.faults == []
    assert set(load.answered) == {1, 2}


def test_a_switch_to_what_is_served_changes_nothing(served: Served) -> None:
    served.endpoint.switch(served.repository, 1)
    assert served.endpoint.active() == served.repository.configured() == (1,)


@contextmanager
def swapped(path: Path, other: Path) -> Iterator[None]:
    kept = path.read_bytes()
    shutil.copyfile(other, path)
    try:
        yield
    finally:
        path.write_bytes(kept)


def broken_version(served: Served, folder: Path, how: str) -> int:
    """A new version that is broken in a way that only shows later."""
    version = max(served.repository.versions()) + 1
    stage(served.repository, folder, version)
    path = served.repository.path(version)
    if how == "truncated":
        os.truncate(path / "model.onnx", 300)
    elif how == "unknown operator":
        model = onnx.load(path / "model.onnx")
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, path / "model.onnx")
        sign(path)
    elif how == "endless":
        make_endless(path / "model.onnx")
        sign(path)
    elif how == "missing":
        (path / "labels.txt").unlink()
    elif how == "golden lies":
        shutil.copyfile(served.repository.path(1) / "golden.npz", path / "golden.npz")
        sign(path)
    return version


@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("truncated", CorruptVersion),
        ("missing", CorruptVersion),
        ("unknown operator", ModelNotReady),
        ("golden lies", GoldenMismatch),
    ],
)
def test_a_broken_version_leaves_the_old_one_serving(
    served: Served, tmp_path: Path, how: str, error: type[ServingError]
) -> None:
    version = broken_version(served, tmp_path, how)
    with closed_loop(served) as load:
        with pytest.raises(error):
            served.endpoint.switch(served.repository, version)
        assert load.meet(1)
    assert load.faults == []
    assert set(load.answered) == {1}, "no client gets an answer of an unchecked version"
    assert served.repository.configured() == (1,)
    assert served.ask(golden_images(1)).version == 1
    served.endpoint.golden_check(served.repository, 1)
    served.endpoint.switch(served.repository, 2)  # and the way is not blocked
    assert served.endpoint.active() == (2,)


@pytest.mark.faults
def test_a_version_that_hangs_leaves_the_old_one_serving(served: Served, tmp_path: Path) -> None:
    version = broken_version(served, tmp_path, "endless")
    try:
        with closed_loop(served) as load, Endpoint(served.access, answer_timeout_s=2) as endpoint:
            with pytest.raises(RequestTimeout) as caught:
                endpoint.switch(served.repository, version)
            assert load.meet(1)
            assert "restart the server" in caught.value.__notes__[0], "it still computes"
            endpoint.switch(served.repository, 2)  # and the way is not blocked
            assert load.meet(2)
        assert load.faults == []
        assert set(load.answered) == {1, 2}
    finally:
        process.kill([pid for pid, argv in process.commands() if f"-candidate-{version}/" in " ".join(argv[:2])])


def test_a_new_version_is_proven_under_another_name(served: Served) -> None:
    name = served.repository.candidate(2).name
    seen: set[str] = set()
    with closed_loop(served) as load, connect(served.access) as client:
        switching = threading.Thread(target=served.endpoint.switch, args=(served.repository, 2))
        switching.start()
        while switching.is_alive():
            index = client.get_model_repository_index()
            seen |= {entry.name for entry in index.models if entry.state == "READY"}
    assert load.faults == []
    assert seen == {"products", "products-encoded", name} | (seen & {"slow"})
    assert not (served.repository.root / name).exists()
    assert name not in {entry.name for entry in served.endpoint._index()}


@pytest.mark.faults
def test_what_a_killed_switch_left_is_swept(served: Served) -> None:
    with candidate_files(served.repository, 2) as candidate, Endpoint(served.access, model=candidate.name) as trial:
        trial.load()
        trial.golden_check(candidate, 2)
        served.endpoint.sweep(served.repository)
        assert trial.active() == ()
        assert not candidate.model.exists()
    served.endpoint.golden_check(served.repository, 1)


def test_another_contract_never_reaches_the_server(served: Served, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "k.onnx", k=3)
    version = max(served.repository.versions()) + 1
    served.repository.write(graph, version=version, labels=LABELS, lineage={}, golden=golden_images())
    with pytest.raises(ContractChanged):
        served.endpoint.switch(served.repository, version)
    assert served.repository.configured() == served.endpoint.active() == (1,)


def test_a_client_follows_a_switch(served: Served) -> None:
    met: list[int] = []

    def labels(version: int) -> Sequence[str]:
        met.append(version)
        return [f"v{version} {label}" for label in LABELS]

    picture = [photo(golden_images(1)[0])]
    with Recognizer(served.access, labels=labels) as recognizer:
        [before] = recognizer.recognise(picture)
        served.endpoint.switch(served.repository, 2)
        [after] = recognizer.recognise(picture)
        recognizer.recognise(picture)
    assert (before.model_version, before.data_version, after.model_version, after.data_version) == (
        1,
        "data1",
        2,
        "data2",
    )
    assert before.ranked[0][0].startswith("v1 ")
    assert after.ranked[0][0].startswith("v2 ")
    assert met == [1, 2]


def test_a_second_start_is_refused(served: Served) -> None:
    with pytest.raises(AlreadyRunning, match=r"pid \d+.*stop it first"):
        served.server.start()
    served.endpoint.golden_check(served.repository, 1)


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_in_use_is_named(served: Served, local_server: MakeServer, tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}.*--{option.replace('_', '-')}"):
            local_server(served.repository.root, tmp_path / "state", **{option: port}).start()
    assert running(tmp_path / "state") is None
