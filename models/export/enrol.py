"""A product more in a finished ONNX file, or one less: seconds, no training, no checkpoint.

Weight imprinting (Qi et al., CVPR 2018, arXiv 1712.07136): the direction of the mean embedding of a few photos is a classifier's
row. Here every member of the graph gets one, as long as its other rows are on average, with a bias that fits theirs.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from models.errors import EnrolmentError
from models.export.patch import Graph, name_classes, put, read_graph, read_metadata, write
from models.export.session import open_session

if TYPE_CHECKING:
    import onnxruntime

LIFT = 0.05  # of a cosine, by which one photo's own row is preferred; n photos divide it by sqrt(n). docs/inside/log.md
NEVER = -1e4  # as bias: a class that is not answered, also in half precision
TOLERANCE = 1e-6  # of a probability
LEAST = 2  # products that a graph tells apart


def new_row(
    rows: NDArray[np.floating], bias: NDArray[np.floating], embedding: NDArray[np.floating]
) -> tuple[NDArray[np.float64], float]:
    """Row (d,) and bias of a product for a classifier of rows (C, d) and bias (C,).

    The row is the direction of the mean embedding, of the mean length that rows have; tau-normalised rows all have it. The bias is
    the median one plus what the row loses on photos it was not made of: the mean of few photos lies beside its class's.

    Args:
        embedding: (G, V, d) of G photos in V views.
    """
    mean = embedding.astype(np.float64).mean((0, 1))
    length = np.linalg.norm(rows.astype(np.float64), axis=1).mean()
    reach = np.linalg.norm(embedding.astype(np.float64), axis=2).mean()
    row = length * mean / max(np.linalg.norm(mean), 1e-12)
    return row, float(np.median(bias) + LIFT * length * reach / np.sqrt(len(embedding)))


def enrol(graph: Path, photos: NDArray[np.uint8], *, label: str, sha256: Sequence[str], out: Path) -> None:
    """Writes the graph with one class more, the last; external data beside it, where there were some.

    Args:
        photos: (G, S, S, 3) of the product.
        sha256: of the photos' files, for the card.

    Raises:
        EnrolmentError: the label cannot be taken, or the graph cannot be patched.
    """
    whole = read_graph(graph)
    check_label(label, whole.labels)
    for each, embedding in zip(whole.classifiers, embeddings(graph, photos), strict=True):
        row, bias = new_row(each.rows, each.bias, embedding)
        put(whole, each, rows=np.vstack([each.rows, row]), bias=np.append(each.bias, bias))
    added = [*enrolled(graph), {"label": label, "photos": len(photos), "sha256": list(sha256)}]
    write(
        whole, out, metadata=name_classes([*whole.labels, label]) | {"enrolled": json.dumps(added, ensure_ascii=False)}
    )


def withdraw(graph: Path, *, label: str, out: Path) -> None:
    """Writes the graph without this class.

    Raises:
        EnrolmentError: there is no such label, too few would be left, or the graph cannot be patched.
    """
    whole = read_graph(graph)
    check_leaving(label, whole.labels)
    gone = whole.labels.index(label)
    for each in whole.classifiers:
        put(whole, each, rows=np.delete(each.rows, gone, 0), bias=np.delete(each.bias, gone))
    stay = [entry for entry in enrolled(graph) if entry["label"] != label]
    left = [each for each in whole.labels if each != label]
    write(whole, out, metadata=name_classes(left) | {"enrolled": json.dumps(stay, ensure_ascii=False)})


def check_label(label: str, labels: Sequence[str]) -> None:
    """EnrolmentError unless a product of this name can be added to those."""
    if not label.strip() or "\n" in label or label != label.strip():
        raise EnrolmentError(f"LABEL {label!r}: want a name on one line, without space around it; correct it")
    if label in labels:
        raise EnrolmentError(
            f"LABEL {label!r} is a product of the serving model already; for new photos of it make a delivery, and `cleanshelf "
            f"ingest` and `retrain`; to replace it, run `cleanshelf withdraw` first"
        )


def check_leaving(label: str, labels: Sequence[str]) -> None:
    """EnrolmentError unless a product of this name can be taken from those."""
    if label not in labels:
        near = difflib.get_close_matches(label, labels, n=3)
        raise EnrolmentError(
            f"LABEL {label!r} is no product of the serving model"
            + (f"; did you mean {', '.join(map(repr, near))}?" if near else f", which knows {len(labels)}; correct it")
        )
    if len(labels) <= LEAST:
        raise EnrolmentError(
            f"LABEL {label!r}: {len(labels) - 1} products would be left, want {LEAST}; enrol another first"
        )


def enrolled(graph: Path) -> list[dict[str, Any]]:
    """The products that were added to the file since it was exported: label, number of photos, their sha256."""
    entries: list[dict[str, Any]] = json.loads(read_metadata(graph).get("enrolled", "[]"))
    return entries


def embeddings(graph: Path, photos: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """(G, V, d) of photos (G, S, S, 3) in the V views that each member takes of them, as its classifier sees them."""
    whole = read_graph(graph)
    for each in whole.classifiers:
        kind = helper.np_dtype_to_tensor_dtype(each.rows.dtype)
        whole.model.graph.output.append(helper.make_tensor_value_info(each.source, kind, ["views", each.rows.shape[1]]))
    names = [each.source for each in whole.classifiers]
    with asked(whole) as session:
        answers = [session.run(names, {"image": photo[None]}) for photo in photos]
    return [np.stack(of_member) for of_member in zip(*answers, strict=True)]


@contextmanager
def asked(graph: Graph) -> Iterator[onnxruntime.InferenceSession]:
    """A session of a graph in memory, which is used up."""
    with tempfile.TemporaryDirectory() as folder:
        write(graph, Path(folder) / "model.onnx")
        yield open_session(Path(folder) / "model.onnx")


@dataclass(frozen=True)
class Agreement:
    """Of two files, once the one product that they differ in is never answered.

    different_ids: photos, of those asked, whose answers differ by more than TOLERANCE. probability, known: largest differences.
    """

    photos: int
    different_ids: int
    probability: float
    known: float


def agreement(larger: Path, smaller: Path, *, label: str, photos: NDArray[np.uint8]) -> Agreement:
    """Whether two files that differ in `label`, which only `larger` knows, are the same in all else; photos (N, S, S, 3).

    In `larger` the product gets a bias under which its probability is exactly 0, so rounding is all that may differ.
    """
    whole = read_graph(larger)
    silent = np.array(whole.labels) == label
    for each in whole.classifiers:
        put(whole, each, rows=each.rows, bias=np.where(silent, NEVER, each.bias))
    with asked(whole) as session:
        one = answered(session, whole.labels, photos)
    other = answered(open_session(smaller), json.loads(read_metadata(smaller)["labels"]), photos)
    off = [a.off(b) for a, b in zip(one, other, strict=True)]
    known = max(abs(a.known - b.known) for a, b in zip(one, other, strict=True))
    return Agreement(len(photos), sum(not each <= TOLERANCE for each in off), max(off), known)


@dataclass(frozen=True)
class Answer:
    """Probabilities of the ranked labels, best first; `floor`: the least of them; `known` as the graph gives it."""

    ranked: dict[str, float]
    floor: float
    known: float

    def off(self, other: Answer) -> float:
        """The largest difference of a probability; below the larger floor a label may have been cut off."""
        floor = max(self.floor, other.floor)
        pairs = ((self.ranked.get(name, 0.0), other.ranked.get(name, 0.0)) for name in self.ranked | other.ranked)
        return max((abs(max(one, floor) - max(two, floor)) for one, two in pairs), default=0.0)


def answered(session: onnxruntime.InferenceSession, labels: Sequence[str], photos: NDArray[np.uint8]) -> list[Answer]:
    """Of photos (N, S, S, 3), each asked alone."""
    found = []
    for photo in photos:
        ids, probs, known = session.run(["ids", "probs", "known"], {"image": photo[None]})
        ranked = {labels[i]: float(p) for i, p in zip(ids[0], probs[0], strict=True) if i >= 0}
        found.append(Answer(ranked, float(probs.min()), float(known[0, 0])))
    return found


def first_labels(graph: Path, photos: NDArray[np.uint8]) -> list[str]:
    """What the file answers first to each photo (N, S, S, 3); "" where nothing."""
    answers = answered(open_session(graph), json.loads(read_metadata(graph)["labels"]), photos)
    return [next(iter(each.ranked), "") for each in answers]
