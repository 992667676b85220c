from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from flows.enrol import read_photos
from pixels import BadPhoto
from serving import LocalRecognizer, Recognizer
from serving.client.photos import encoded
from serving.errors import (
    BadGraph,
    BadRequest,
    Forbidden,
    ModelNotReady,
    RequestRejected,
    RequestTimeout,
    ServerUnavailable,
    ServingError,
    Untrusted,
)
from serving.repository.repository import ModelRepository
from serving.wire import translate
from tests.graphs import LABELS, SIZE, golden_images, write_graph

ROOT = Path(__file__).parents[3]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_file_answers_as_onnx_runtime_does(staged: ModelRepository, tmp_path: Path) -> None:
    images = golden_images(19)  # more than two chunks
    (tmp_path / "photo.png").write_bytes(png(images[0]))
    photos = [tmp_path / "photo.png", *(png(image) for image in images[1:])]
    found = LocalRecognizer(staged.path(1) / "model.onnx").recognise(photos, embedding=True)
    session = onnxruntime.InferenceSession(staged.path(1) / "model.onnx")
    ids, probs, embedding = session.run(["ids", "probs", "embedding"], {"image": images})
    for number, recognition in enumerate(found):
        assert [label for label, _ in recognition.ranked] == [LABELS[i] for i in ids[number]]
        assert np.allclose([p for _, p in recognition.ranked], probs[number], atol=1e-5)
        assert np.allclose(recognition.embedding, embedding[number], atol=1e-4)
        assert (recognition.model_version, recognition.data_version) == (None, "0123456789ab")
    assert len(found) == 19


def test_a_photo_of_any_size_is_squeezed(staged: ModelRepository) -> None:
    recognizer = LocalRecognizer(staged.path(1) / "model.onnx")
    [recognition] = recognizer.recognise([png(np.full((70, 33, 3), 200, np.uint8))])
    [same] = recognizer.recognise([png(np.full((SIZE, SIZE, 3), 200, np.uint8))])
    assert recognition == same
    assert recognition.embedding is None
    assert recognizer.recognise([]) == []


def test_padding_is_left_out(repository: ModelRepository, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", k=10)
    repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())
    assert (repository.golden(1).ids[:, 8:] == -1).all()
    [recognition] = LocalRecognizer(repository.path(1) / "model.onnx").recognise([png(golden_images()[0])])
    assert sorted(label for label, _ in recognition.ranked) == sorted(LABELS)
    assert sum(p for _, p in recognition.ranked) == pytest.approx(1.0)


def test_a_bad_photo_is_named(staged: ModelRepository, tmp_path: Path) -> None:
    recognizer = LocalRecognizer(staged.path(1) / "model.onnx")
    with pytest.raises(BadPhoto, match="photo 1: the file is empty"):
        recognizer.recognise([png(golden_images()[0]), b""])
    with pytest.raises(BadPhoto, match=r"absent\.jpg.*replace it"):
        recognizer.recognise([tmp_path / "absent.jpg"])


def test_a_pipe_is_no_photo(staged: ModelRepository, tmp_path: Path) -> None:
    """A pipe without a writer would be read forever, and so would a device."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    recognizer = LocalRecognizer(staged.path(1) / "model.onnx")
    paths = [tmp_path / "pipe.png", tmp_path / "link.png", tmp_path, Path("/dev/zero")]
    for path in paths:
        with pytest.raises(BadPhoto, match=f"^{path}: is not a file; leave it out or replace it$"):
            recognizer.recognise([path])
        with pytest.raises(BadPhoto, match=f"^{path}: is not a file; leave it out or replace it$"):
            encoded(path, number=0, size=SIZE)
    with pytest.raises(BadPhoto, match=r"pipe\.png: is not a file; .*zero: is not a file; leave them out"):
        read_photos(paths, side=SIZE)


def test_bad_photos_leave_the_answers_to_the_others(staged: ModelRepository) -> None:
    recognizer = LocalRecognizer(staged.path(1) / "model.onnx")
    good = [png(image) for image in golden_images()]
    photos = [b"", *good, b"text"]
    with pytest.raises(BadPhoto, match="photo 0: the file is empty") as refused:
        recognizer.recognise(photos)
    first, *answers, last = refused.value.answers
    assert first is refused.value
    assert isinstance(last, BadPhoto)
    for answer, expected in zip(answers, recognizer.recognise(good), strict=True):
        assert answer.ranked[0][0] == expected.ranked[0][0]


def test_a_file_alone_answers(graph: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "any name"
    alone.parent.mkdir()
    graph.rename(alone)
    [recognition] = LocalRecognizer(alone).recognise([png(golden_images()[0])])
    assert {label for label, _ in recognition.ranked} < set(LABELS)


@pytest.mark.parametrize("labels", ["", "{}", "[1]", "no json"])
def test_a_graph_without_labels_is_refused(labels: str, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "foreign.onnx", metadata={"labels": labels})
    with pytest.raises(BadGraph, match=r"foreign\.onnx: metadata `labels`.*take the file of a model version"):
        LocalRecognizer(graph)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08\x01", bytes(range(256))])
def test_a_file_that_is_no_graph_of_ours_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "garbage.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadGraph, match=r"garbage\.json"):
        LocalRecognizer(path)


def test_no_server_at_the_address(unused_port: int) -> None:
    with (
        Recognizer(f"127.0.0.1:{unused_port}", labels=lambda version: LABELS, timeout_s=2) as recognizer,
        pytest.raises(ServerUnavailable, match=f"127.0.0.1:{unused_port}.*cleanshelf serve"),
    ):
        recognizer.recognise([png(golden_images()[0])])


@pytest.mark.parametrize(
    ("message", "status", "expected"),
    [
        ("got unexpected numpy array shape", None, BadRequest),
        ("unexpected shape for input 'image'", "StatusCode.INVALID_ARGUMENT", BadRequest),
        ("This protocol is restricted, expecting header 'a'", "StatusCode.UNAVAILABLE", Forbidden),
        ("failed to connect; Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "StatusCode.UNAVAILABLE", Untrusted),
        ("Received message larger than max", "StatusCode.RESOURCE_EXHAUSTED", BadRequest),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", RequestTimeout),
        ("Request timeout expired", "StatusCode.UNAVAILABLE", RequestTimeout),
        ("Exceeds maximum queue size", "StatusCode.UNAVAILABLE", RequestRejected),
        ("failed to connect to all addresses", "StatusCode.UNAVAILABLE", ServerUnavailable),
        ("Socket closed", "StatusCode.UNAVAILABLE", ServerUnavailable),
        ("Request for unknown model: 'x' is not found", "StatusCode.NOT_FOUND", ModelNotReady),
        ("model is not ready", "StatusCode.UNAVAILABLE", ModelNotReady),
        ("load failed for model 'x'", "StatusCode.INVALID_ARGUMENT", ModelNotReady),
        ("Stub process is unhealthy", "StatusCode.INTERNAL", ModelNotReady),
    ],
)
def test_every_exception_of_the_library_has_a_name(message: str, status: str, expected: type[ServingError]) -> None:
    error = translate(InferenceServerException(message, status), "host:1")
    assert type(error) is expected
    assert message in str(error)
    assert "host:1" in str(error)


def test_serving_never_imports_torch() -> None:
    script = """
import sys, pkgutil, importlib, serving
names = [m.name for m in pkgutil.walk_packages(serving.__path__, "serving.") if not m.name.endswith(".model")]
for name in names:
    importlib.import_module(name)
assert "serving.client.client" in names and "serving.server.server" in names, names
print(sorted({"torch", "timm", "pyarrow", "pydantic", "typer", "prefect", "dvc", "flows", "models"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


FULL = """
from pathlib import Path
import numpy as np
from serving.client.shared_memory import Region
from serving.errors import BadRequest

small = Region.of(200_000)
small.tensor_of(np.ones((1, 200, 200, 3), np.uint8))
try:
    Region.of(2_000_000).tensor_of(np.ones((10, 200, 200, 3), np.uint8))
except BadRequest as error:
    print(error)
small.unlink()
small.close()
assert not list(Path("/dev/shm").iterdir())
"""


@pytest.mark.faults
def test_full_shared_memory_is_refused_and_kills_nothing() -> None:
    mounted = "mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 99"
    command = ["unshare", "--mount", "sh", "-c", f'{mounted}; exec "$0" -c "$1"', sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine permits no mounts")
    assert done.returncode == 0, done.stderr or f"ended by signal {-done.returncode}"
    assert re.search(r"2,000,000 bytes of shared memory are not available.*transport='uint8'", done.stdout)
