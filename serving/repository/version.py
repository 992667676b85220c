"""Files of one model version: the graph, its labels, its golden images with their answers, and its lineage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from contract import labels_sha256
from durable import sha256, sync, write
from serving.errors import BadGraph
from serving.repository.lineage import LINEAGE, canonical
from serving.signature import Signature, load_header


@dataclass(frozen=True)
class Golden:
    """Golden images, and the answers that local ONNX Runtime gave when the version was written."""

    image: NDArray[np.uint8]  # (G, S, S, 3)
    ids: NDArray[np.int64]  # (G, k)
    probs: NDArray[np.float32]  # (G, k)

    def differs(
        self, number: int, ids: NDArray[Any], probs: NDArray[Any], *, tolerance: float, strict: bool = True
    ) -> str:
        """Difference between an answer, `ids` (k,) and `probs` (k,), and the golden one to image `number`; "" if none.

        Args:
            tolerance: largest difference of a probability.
            strict: every id needs its rank. Otherwise classes closer than twice the tolerance may swap ranks.
        """
        want = self.probs[number].astype(np.float64)
        gap = -np.diff(want, append=want[-1]) > 2 * tolerance  # the last rank has no known neighbour
        firm = np.full(len(want), True) if strict else gap & np.append(True, gap[:-1])
        off = float(np.abs(probs - want).max())
        if np.array_equal(ids[firm], self.ids[number][firm]) and off <= tolerance:
            return ""
        return (
            f"ids {ids.tolist()}, probabilities off by {off:.2g}; "
            f"want ids {self.ids[number].tolist()} within {tolerance:.2g}"
        )


def write_version(
    folder: Path, graph: Path, *, labels: Sequence[str], lineage: Mapping[str, Any], golden: NDArray[np.uint8]
) -> None:
    """Writes all files of a version into `folder`; they have reached the disk when this returns.

    Raises:
        BadGraph: the graph, its labels and its golden images do not match each other or the endpoint's contract.
    """
    signature = Signature.read(graph)
    _check_labels(labels, signature, graph)
    _copy_graph(graph, folder)
    write(folder / "labels.txt", _labels_text(labels))
    _write_golden(folder, _answers(folder / "model.onnx", golden, signature), len(labels))
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    write(folder / LINEAGE, canonical({**lineage, "files": files}))
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
        answers = [session.run(["ids", "probs"], {"image": image[None]}) for image in images]
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        version = onnxruntime.__version__
        raise BadGraph(f"ONNX Runtime {version} cannot run {graph.name} ({error}); export it again") from None
    ids, probs = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return Golden(images, ids, probs)


def _write_golden(folder: Path, golden: Golden, num_classes: int) -> None:
    if golden.ids.max() >= num_classes:
        raise BadGraph(
            f"the graph answers class {golden.ids.max()}, but there are {num_classes} labels; pass its own labels"
        )
    with (folder / "golden.npz").open("wb") as file:
        np.savez(file, image=golden.image, ids=golden.ids, probs=golden.probs)
    sync(folder / "golden.npz")
