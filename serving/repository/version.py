"""Files of one model version: the graph, its labels, its golden images with their answers, and its lineage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from contract import labels_sha256
from durable import sha256, sync, write
from serving.errors import BadGraph
from serving.repository.accelerator import Accelerator
from serving.repository.golden import Golden
from serving.repository.lineage import LINEAGE, canonical
from serving.repository.runtimes import RUNTIMES, answers, compare_runtimes, precision_of
from serving.signature import Signature, load_header


def write_version(
    folder: Path, graph: Path, *, labels: Sequence[str], lineage: Mapping[str, Any], golden: NDArray[np.uint8],
    accelerator: Accelerator,
) -> None:  # fmt: skip
    """Writes all files of a version into `folder`; they have reached the disk when this returns.

    Raises:
        BadGraph: the graph, its labels and its golden images do not match each other or the endpoint's contract.
        GoldenMismatch: ONNX Runtime computes the graph wrongly on this machine.
    """
    signature = Signature.read(graph)
    _check_labels(labels, signature, graph)
    _copy_graph(graph, folder)
    write(folder / "labels.txt", _labels_text(labels))
    copied = folder / "model.onnx"
    answered = _answers(copied, golden, signature)
    _write_golden(folder, answered, len(labels))
    runtimes = compare_runtimes(copied, answered, accelerator, precision_of(load_header(copied)))
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    write(folder / LINEAGE, canonical({**lineage, RUNTIMES: runtimes, "files": files}))
    sync(folder)


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels of labels.txt: line i names class i, and only a line feed ends a line."""
    return tuple(path.read_bytes().decode("utf-8").removesuffix("\n").split("\n"))


def _labels_text(labels: Sequence[str]) -> bytes:
    return "".join(f"{label}\n" for label in labels).encode("utf-8")


def _check_labels(labels: Sequence[str], signature: Signature, graph: Path) -> None:
    if not labels or any("\n" in label or not label for label in labels):
        raise BadGraph(
            f"labels of {graph}: want at least one, none empty, none with a line feed; correct the class names"
        )
    expected = signature.metadata.get("labels_sha256")
    if expected and expected != labels_sha256(labels):
        found = labels_sha256(labels)
        raise BadGraph(
            f"{graph}: metadata labels_sha256 is {expected}, that of the labels passed is {found}; pass its own labels"
        )


def _copy_graph(graph: Path, folder: Path) -> None:
    """Copies the graph as model.onnx, and its external data under the names that the graph uses."""
    sources = {"model.onnx": graph}
    for name in _external_files(graph):
        if Path(name).name != name:
            raise BadGraph(f"{graph}: external data is at {name!r}, want a file beside the graph; export it again")
        sources[name] = graph.parent / name
    for name, source in sources.items():
        shutil.copyfile(source, folder / name)
        sync(folder / name)


def _external_files(graph: Path) -> set[str]:
    tensors = (tensor for tensor in load_header(graph).graph.initializer if uses_external_data(tensor))
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def _answers(graph: Path, images: NDArray[np.uint8], signature: Signature) -> Golden:
    """Answers of local ONNX Runtime, one image at a time as in the golden check of the server."""
    want = (signature.size, signature.size, 3)
    if images.dtype != np.uint8 or images.shape[1:] != want or not len(images):
        raise BadGraph(f"golden images are {images.dtype} {images.shape}, want uint8 (G >= 1, {want}); make them again")
    try:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return Golden(images, *answers(session, images))
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        version = onnxruntime.__version__
        raise BadGraph(f"ONNX Runtime {version} cannot run {graph.name} ({error}); export it again") from None


def _write_golden(folder: Path, golden: Golden, num_classes: int) -> None:
    if golden.ids.max() >= num_classes:
        raise BadGraph(
            f"the graph answers class {golden.ids.max()}, but there are {num_classes} labels; pass its own labels"
        )
    with (folder / "golden.npz").open("wb") as file:
        np.savez(file, image=golden.image, ids=golden.ids, probs=golden.probs)
    sync(folder / "golden.npz")
