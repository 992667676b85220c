"""Add a product to a finished ONNX file, or remove one, within seconds, without training or a checkpoint.

Weight imprinting (Qi et al., CVPR 2018, arXiv 1712.07136): the direction of the mean embedding of a few photos becomes
a row of the classifier. Here, every member of the graph gets one, of the mean length of its other rows and with a
suitable bias.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from contract.labels import KnownLabels, difference, fault, shown
from models.errors import EnrolmentError
from models.export.patch import Graph, name_classes, read_graph, read_metadata, replace_classifier, write
from models.export.session import open_session

if TYPE_CHECKING:
    import onnxruntime

# cosine by which a photo is closer to a row made of it; divided by sqrt(n) for n photos (docs/inside/log.md)
LIFT = 0.05
NEVER = -1e4  # bias of a class that is never predicted; finite, to fit half precision
TOLERANCE = 1e-5  # of a probability
MIN_PRODUCTS = 2  # in a graph


def new_row(
    rows: NDArray[np.floating], bias: NDArray[np.floating], embedding: NDArray[np.floating]
) -> tuple[NDArray[np.float64], float]:
    """Row (d,) and bias of a new product for a classifier with rows (C, d) and bias (C,).

    The row is the direction of the mean embedding, with the mean length of the other rows (tau-normalised rows all have
    the same length). The bias is the median of the others, plus what the row loses on photos that it was not made of,
    because the mean of a few photos differs from that of the class.

    Args:
        embedding: (G, V, d) embeddings of G photos in V crops.
    """
    mean = embedding.astype(np.float64).mean((0, 1))
    length = np.linalg.norm(rows.astype(np.float64), axis=1).mean()
    reach = np.linalg.norm(embedding.astype(np.float64), axis=2).mean()
    row = length * mean / max(np.linalg.norm(mean), 1e-12)
    return row, float(np.median(bias) + LIFT * length * reach / np.sqrt(len(embedding)))


def new_mean(rows: NDArray[np.floating], whitened: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Row (d,) and bias of a new product for discriminants with rows (C, d) (models.export.discriminant).

    The row is the direction of the mean of its photos, with the mean length of the other rows: the mean of a few photos is
    longer than that of a class, and would ask too much of the next photo.

    Args:
        whitened: (G, 1, d) inputs of the discriminants for G photos.
    """
    mean = whitened.astype(np.float64).mean((0, 1))
    row = np.linalg.norm(rows.astype(np.float64), axis=1).mean() * mean / max(np.linalg.norm(mean), 1e-12)
    return row, -0.5 * float(row @ row)


def enrol(graph: Path, photos: NDArray[np.uint8], *, label: str, sha256: Sequence[str], out: Path) -> None:
    """Writes the graph with an additional last class, and its external data, if any, beside it.

    Args:
        photos: (G, S, S, 3) photos of the product.
        sha256: hashes of the photos' files, for the metadata.

    Raises:
        EnrolmentError: the label cannot name a product or is not new, or the graph cannot be patched.
    """
    whole = read_graph(graph)
    label = new_product(label, whole.labels)
    layers = [*whole.classifiers, *whole.discriminants]
    for number, (each, embedding) in enumerate(zip(layers, embeddings(graph, photos), strict=True)):
        is_classifier = number < len(whole.classifiers)
        row, bias = new_row(each.rows, each.bias, embedding) if is_classifier else new_mean(each.rows, embedding)
        replace_classifier(whole, each, rows=np.vstack([each.rows, row]), bias=np.append(each.bias, bias))
    added = [*enrolled(graph), {"label": label, "photos": len(photos), "sha256": list(sha256)}]
    metadata = name_classes([*whole.labels, label]) | {"enrolled": json.dumps(added, ensure_ascii=False)}
    write(whole, out, metadata=metadata)


def withdraw(graph: Path, *, label: str, out: Path) -> None:
    """Writes the graph without this class.

    Raises:
        EnrolmentError: there is no such label, too few would be left, or the graph cannot be patched.
    """
    whole = read_graph(graph)
    label = leaving_product(label, whole.labels)
    position = whole.labels.index(label)
    for each in (*whole.classifiers, *whole.discriminants):
        replace_classifier(whole, each, rows=np.delete(each.rows, position, 0), bias=np.delete(each.bias, position))
    still_enrolled = [entry for entry in enrolled(graph) if entry["label"] != label]
    labels = [each for each in whole.labels if each != label]
    metadata = name_classes(labels) | {"enrolled": json.dumps(still_enrolled, ensure_ascii=False)}
    write(whole, out, metadata=metadata)


def new_product(label: str, labels: Sequence[str]) -> str:
    """The label as it is stored.

    Raises:
        EnrolmentError: no product of this name can be added to those.
    """
    known = KnownLabels(labels)
    product = known.spelt(label)
    if product in known.labels:
        raise EnrolmentError(
            f"LABEL {shown(product)} is already a product of the current model; to add photos of it, make a delivery and run "
            "`cleanshelf ingest` and `cleanshelf retrain`; to replace it, run `cleanshelf withdraw` first"
        )
    if reason := fault(product):
        raise EnrolmentError(f"LABEL {shown(label)} {reason}; give the name of a product")
    if alike := known.alike(product):
        raise EnrolmentError(
            f"LABEL {shown(product)} and {shown(alike)}, a product of the current model, {difference(product, alike)}; "
            "choose another name, or make a delivery to add photos of that product"
        )
    return product


def leaving_product(label: str, labels: Sequence[str]) -> str:
    """The product that the label means.

    Raises:
        EnrolmentError: there is none, or it cannot be removed from those.
    """
    known = KnownLabels(labels)
    product = known.spelt(label)
    if product not in known.labels:
        alike = known.alike(product)
        near = [alike] if alike else difflib.get_close_matches(product, labels, n=3)
        hint = f"; did you mean {', '.join(map(shown, near))}?" if near else f", which knows {len(labels)}; correct it"
        raise EnrolmentError(f"LABEL {shown(label)} is not a product of the current model{hint}")
    if len(labels) <= MIN_PRODUCTS:
        raise EnrolmentError(
            f"LABEL {shown(product)}: {len(labels) - 1} products would be left, but a model needs {MIN_PRODUCTS}; "
            "enrol another product first"
        )
    return product


def labels_of(graph: Path) -> list[str]:
    """Labels of the file's classes, by id."""
    return list(json.loads(read_metadata(graph)["labels"]))


def enrolled(graph: Path) -> list[dict[str, Any]]:
    """Products that were added to the file after its export: label, number of photos, and their sha256."""
    entries: list[dict[str, Any]] = json.loads(read_metadata(graph).get("enrolled", "[]"))
    return entries


def embeddings(graph: Path, photos: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Inputs (G, V, d) of each classifier, in its member's V crops, and (G, 1, d) of each discriminant, if there are any.

    Args:
        photos: (G, S, S, 3).
    """
    with session_with_inputs(graph, discriminants=True) as (session, names):
        outputs = [session.run(names, {"image": photo[None]}) for photo in photos]
    return [np.stack(of_member) for of_member in zip(*outputs, strict=True)]


@contextmanager
def session_with_inputs(
    graph: Path, *, discriminants: bool = False, gpu: int | None = None
) -> Iterator[tuple[onnxruntime.InferenceSession, list[str]]]:
    """Session of a file that also returns the inputs of its classifiers, and the names of these tensors.

    discriminants: also the inputs of the discriminants, if there are any, last.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        names = _write_with_inputs(graph, file, discriminants=discriminants)
        yield open_session(file, gpu=gpu), names  # only now, as the graph took as much memory as the session will


def _write_with_inputs(graph: Path, out: Path, *, discriminants: bool) -> list[str]:
    """Writes a file that also returns the inputs of its classifiers, and returns their names."""
    whole = read_graph(graph)
    layers = [*whole.classifiers, *(whole.discriminants if discriminants else [])]
    for each in layers:
        kind = helper.np_dtype_to_tensor_dtype(each.rows.dtype)
        whole.model.graph.output.append(helper.make_tensor_value_info(each.source, kind, ["views", each.rows.shape[1]]))
    names = [each.source for each in layers]
    del layers, each
    whole = replace(whole, classifiers=[], discriminants=[])  # of many classes, their rows are as large as the file
    write(whole, out)
    return names


@contextmanager
def temporary_session(graph: Graph) -> Iterator[onnxruntime.InferenceSession]:
    """Session of a graph in memory, as of `open_session`. The graph cannot be used afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        write(graph, Path(folder) / "model.onnx")
        yield open_session(Path(folder) / "model.onnx")


@dataclass(frozen=True)
class Agreement:
    """Differences between the answers of two files, apart from the one product that only one of them knows.

    photos: number of photos compared. different_ids: photos whose answers differ by more than TOLERANCE. probability,
    known: largest differences.
    """

    photos: int
    different_ids: int
    probability: float
    known: float


def agreement(larger: Path, smaller: Path, *, label: str, photos: NDArray[np.uint8]) -> Agreement:
    """Agreement of two files on photos (N, S, S, 3), apart from `label`, which only `larger` knows.

    In `larger`, the product gets a bias that makes its probability exactly 0, so only rounding may differ.
    """
    whole = read_graph(larger)
    is_label = np.array(whole.labels) == label
    for each in (*whole.classifiers, *whole.discriminants):
        replace_classifier(whole, each, rows=each.rows, bias=np.where(is_label, NEVER, each.bias))
    with temporary_session(whole) as session:
        one = answers(session, whole.labels, photos)
    other = answers(open_session(smaller), labels_of(smaller), photos)
    differences = [a.difference(b) for a, b in zip(one, other, strict=True)]
    known = max(abs(a.known - b.known) for a, b in zip(one, other, strict=True))
    return Agreement(len(photos), sum(not each <= TOLERANCE for each in differences), max(differences), known)


@dataclass(frozen=True)
class Answer:
    """Answer to one photo: probabilities of the ranked labels, best first, their minimum `floor`, and `known`."""

    ranked: dict[str, float]
    floor: float
    known: float

    def difference(self, other: Answer) -> float:
        """Largest difference of a probability; those below the larger floor count as the floor, as they may be cut."""
        floor = max(self.floor, other.floor)
        pairs = ((self.ranked.get(name, 0.0), other.ranked.get(name, 0.0)) for name in self.ranked | other.ranked)
        return max((abs(max(one, floor) - max(two, floor)) for one, two in pairs), default=0.0)


def answers(session: onnxruntime.InferenceSession, labels: Sequence[str], photos: NDArray[np.uint8]) -> list[Answer]:
    """Answers to photos (N, S, S, 3), in batches of one."""
    collected = []
    for photo in photos:
        ids, probs, known = session.run(["ids", "probs", "known"], {"image": photo[None]})
        ranked = {labels[i]: float(p) for i, p in zip(ids[0], probs[0], strict=True) if i >= 0}
        collected.append(Answer(ranked, float(probs.min()), float(known[0, 0])))
    return collected


def first_labels(graph: Path, photos: NDArray[np.uint8]) -> list[str]:
    """First label of the file's answer to each photo (N, S, S, 3); "" if it has none."""
    return [next(iter(each.ranked), "") for each in answers(open_session(graph), labels_of(graph), photos)]
