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
from tests.graphs import LABELS, SIZE, golden_images, make_endless, update_hashes, write_graph, write_versions
from tests.triton import Triton, closed_loop, triton_with_two_versions

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
MakeServer = Callable[..., LocalServer]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, local_server: MakeServer) -> Iterator[Triton]:
    with triton_with_two_versions(tmp_path_factory.mktemp("triton"), local_server) as triton:
        yield triton


@pytest.fixture(autouse=True)
def _version_1(request: pytest.FixtureRequest) -> None:
    """Switches to version 1 before every test of the shared server."""
    if "triton" in request.fixturenames:
        triton = request.getfixturevalue("triton")
        if triton.endpoint.active() != (1,):
            triton.endpoint.switch(triton.repository, 1)


def photo(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_answers_equal_local_onnx_runtime(triton: Triton) -> None:
    images = golden_images(19, seed=5)
    photos = [photo(image) for image in images]
    with Recognizer(triton.access, labels=triton.repository.labels) as recognizer:
        found = recognizer.recognise(photos, embedding=True)
    local = LocalRecognizer(triton.repository.path(1) / "model.onnx").recognise(photos, embedding=True)
    for answer, expected in zip(found, local, strict=True):
        assert [label for label, _ in answer.ranked] == [label for label, _ in expected.ranked]
        assert np.allclose([p for _, p in answer.ranked], [p for _, p in expected.ranked], atol=1e-5)
        assert np.allclose(answer.embedding, expected.embedding, atol=1e-4)
        assert (answer.model_version, answer.data_version) == (1, "data1")
    assert len({answer.ranked[0][0] for answer in found}) > 1, "different photos get different answers"


def test_the_golden_check_notices_another_model(triton: Triton) -> None:
    triton.endpoint.golden_check(triton.repository, 1)
    with swapped(triton.repository.path(1) / "golden.npz", triton.repository.path(2) / "golden.npz"):
        update_hashes(triton.repository.path(1))
        with pytest.raises(GoldenMismatch, match="version 1, golden image 0"):
            triton.endpoint.golden_check(triton.repository, 1)
    update_hashes(triton.repository.path(1))


def test_each_request_gets_its_own_answer(triton: Triton) -> None:
    images = golden_images(24, seed=9)
    expected = [triton.infer(image[None]).arrays for image in images]
    found: dict[int, Answer] = {}

    def infer(number: int) -> None:
        found[number] = triton.infer(images[number : number + 1 + number % 3])

    threads = [threading.Thread(target=infer, args=(number,)) for number in range(22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in found.items():
        for row, (ids, probs) in enumerate(zip(answer.arrays["ids"], answer.arrays["probs"], strict=True)):
            assert np.array_equal(ids, expected[number + row]["ids"][0])
            assert np.allclose(probs, expected[number + row]["probs"][0], atol=1e-5)
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
def test_a_malformed_request_is_refused_and_the_server_lives(triton: Triton, image: NDArray) -> None:
    with pytest.raises(BadRequest) as caught:
        triton.infer(image)
    assert isinstance(caught.value, ValueError)
    triton.endpoint.golden_check(triton.repository, 1)


def test_unknown_models_and_versions(triton: Triton) -> None:
    for wrong in ({"model": "elsewhere"}, {"version": "9"}):
        with pytest.raises(ModelNotReady, match=r"9|elsewhere"):
            triton.infer(golden_images(1), **wrong)


@pytest.fixture(scope="module")
def slow(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a second model in the same server: about 150 ms per photo, and a queue for one request."""
    repository = ModelRepository(triton.repository.root, "slow", joined=1, instances=1)
    write_versions(repository, tmp_path_factory.mktemp("slow"), 1, work=60)
    repository.configure([1])
    path = repository.model / "config.pbtxt"
    path.write_text(replace(TritonConfig.parse(path.read_text()), max_queue_size=1).to_pbtxt())
    with Endpoint(triton.access, model="slow") as endpoint:
        endpoint.load()
        endpoint.golden_check(repository, 1)
    return "slow"


def test_a_deadline_is_kept(triton: Triton, slow: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestTimeout):
        triton.infer(golden_images(1), model=slow, timeout_s=0.03)
    assert time.monotonic() - start < 1.0


def test_a_full_queue_rejects_at_once(triton: Triton, slow: str) -> None:
    outcomes: list[ServingError | Answer] = []

    def infer() -> None:
        try:
            outcomes.append(triton.infer(golden_images(1), model=slow))
        except ServingError as error:
            outcomes.append(error)

    def kinds() -> set[type]:
        return {type(outcome) for outcome in outcomes}

    for _ in range(10):  # the request of the test above may still occupy the queue
        threads = [threading.Thread(target=infer) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(kinds()) > 1:
            break
        time.sleep(0.5)
    assert kinds() == {RequestRejected, Answer}, outcomes


def test_no_request_is_lost_while_versions_switch(triton: Triton) -> None:
    with closed_loop(triton) as load:
        for version in (2, 1, 2, 1):
            triton.endpoint.switch(triton.repository, version)
            assert triton.endpoint.active() == triton.repository.configured() == (version,)
            assert load.wait_for_answers(version, more=50)
    assert load.faults == []
    assert set(load.answers) == {1, 2}


def test_a_switch_to_the_current_version_changes_nothing(triton: Triton) -> None:
    triton.endpoint.switch(triton.repository, 1)
    assert triton.endpoint.active() == triton.repository.configured() == (1,)


@contextmanager
def swapped(path: Path, other: Path) -> Iterator[None]:
    kept = path.read_bytes()
    shutil.copyfile(other, path)
    try:
        yield
    finally:
        path.write_bytes(kept)


def broken_version(triton: Triton, folder: Path, fault: str) -> int:
    """Writes a new version that is broken in the given way, and returns its number."""
    version = max(triton.repository.versions()) + 1
    write_versions(triton.repository, folder, version)
    path = triton.repository.path(version)
    if fault == "truncated":
        os.truncate(path / "model.onnx", 300)
    elif fault == "unknown operator":
        model = onnx.load(path / "model.onnx")
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, path / "model.onnx")
        update_hashes(path)
    elif fault == "newer opset":
        model = onnx.load(path / "model.onnx")
        model.opset_import[0].version = 99
        onnx.save(model, path / "model.onnx")
        update_hashes(path)
    elif fault == "endless":
        make_endless(path / "model.onnx")
        update_hashes(path)
    elif fault == "missing":
        (path / "labels.txt").unlink()
    elif fault == "wrong golden answers":
        shutil.copyfile(triton.repository.path(1) / "golden.npz", path / "golden.npz")
        update_hashes(path)
    return version


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("truncated", CorruptVersion, "sha256"),
        ("missing", CorruptVersion, "no such file"),
        ("unknown operator", ModelNotReady, "NoSuchOperator"),
        ("newer opset", ModelNotReady, r"ONNX Runtime \d+\.\d+\.\d+ cannot load the graph.*[Oo]pset"),
        ("wrong golden answers", GoldenMismatch, "golden image 0"),
    ],
)
def test_a_broken_version_leaves_the_old_one_serving(
    triton: Triton, tmp_path: Path, fault: str, error: type[ServingError], message: str
) -> None:
    version = broken_version(triton, tmp_path, fault)
    with closed_loop(triton) as load:
        with pytest.raises(error, match=message):
            triton.endpoint.switch(triton.repository, version)
        assert load.wait_for_answers(1)
    assert load.faults == []
    assert set(load.answers) == {1}, "no client gets an answer of an unchecked version"
    assert triton.repository.configured() == (1,)
    assert triton.infer(golden_images(1)).version == 1
    triton.endpoint.golden_check(triton.repository, 1)
    triton.endpoint.switch(triton.repository, 2)  # later switches are not blocked
    assert triton.endpoint.active() == (2,)


@pytest.mark.faults
def test_a_version_that_hangs_leaves_the_old_one_serving(triton: Triton, tmp_path: Path) -> None:
    version = broken_version(triton, tmp_path, "endless")
    try:
        with closed_loop(triton) as load, Endpoint(triton.access, answer_timeout_s=2) as endpoint:
            with pytest.raises(RequestTimeout) as caught:
                endpoint.switch(triton.repository, version)
            assert load.wait_for_answers(1)
            assert "restart the server" in caught.value.__notes__[0], "it still computes"
            endpoint.switch(triton.repository, 2)  # later switches are not blocked
            assert load.wait_for_answers(2)
        assert load.faults == []
        assert set(load.answers) == {1, 2}
    finally:
        process.kill([pid for pid, argv in process.commands() if f"-candidate-{version}/" in " ".join(argv[:2])])


def test_a_new_version_is_checked_under_another_name(triton: Triton) -> None:
    name = triton.repository.candidate(2).name
    ready: set[str] = set()
    with closed_loop(triton) as load, connect(triton.access) as client:
        switching = threading.Thread(target=triton.endpoint.switch, args=(triton.repository, 2))
        switching.start()
        while switching.is_alive():
            index = client.get_model_repository_index()
            ready |= {entry.name for entry in index.models if entry.state == "READY"}
    assert load.faults == []
    assert ready == {"products", "products-encoded", name} | (ready & {"slow"})
    assert not (triton.repository.root / name).exists()
    assert name not in {entry.name for entry in triton.endpoint._index()}


@pytest.mark.faults
def test_what_a_killed_switch_left_is_swept(triton: Triton) -> None:
    with candidate_files(triton.repository, 2) as candidate, Endpoint(triton.access, model=candidate.name) as trial:
        trial.load()
        trial.golden_check(candidate, 2)
        triton.endpoint.sweep(triton.repository)
        assert trial.active() == ()
        assert not candidate.model.exists()
    triton.endpoint.golden_check(triton.repository, 1)


def test_another_contract_never_reaches_the_server(triton: Triton, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "k.onnx", k=3)
    version = max(triton.repository.versions()) + 1
    triton.repository.write(graph, version=version, labels=LABELS, lineage={}, golden=golden_images())
    with pytest.raises(ContractChanged):
        triton.endpoint.switch(triton.repository, version)
    assert triton.repository.configured() == triton.endpoint.active() == (1,)


def test_a_client_follows_a_switch(triton: Triton) -> None:
    asked_for: list[int] = []

    def labels(version: int) -> Sequence[str]:
        asked_for.append(version)
        return [f"v{version} {label}" for label in LABELS]

    picture = [photo(golden_images(1)[0])]
    with Recognizer(triton.access, labels=labels) as recognizer:
        [before] = recognizer.recognise(picture)
        triton.endpoint.switch(triton.repository, 2)
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
    assert asked_for == [1, 2]


def test_a_second_start_is_refused(triton: Triton) -> None:
    with pytest.raises(AlreadyRunning, match=r"pid \d+.*stop it first"):
        triton.server.start()
    triton.endpoint.golden_check(triton.repository, 1)


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_in_use_is_named(triton: Triton, local_server: MakeServer, tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}.*--{option.replace('_', '-')}"):
            local_server(triton.repository.root, tmp_path / "state", **{option: port}).start()
    assert running(tmp_path / "state") is None
