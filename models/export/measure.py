"""Measure the accuracy of an ONNX file, as it will be served, on the test photos of a data version.

`python -m models.export.measure --graph FILE --data DIR --out DIR`
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.errors import EnrolmentError
from models.evaluation.accuracy import accuracy
from models.export.features import ROWS, in_classes_of, kept_rows, recorded
from models.export.session import open_session
from models.progress import with_progress
from models.training.command import log_progress, parser_for, run

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)
BATCH = 8


class Answers(NamedTuple):
    """Answers of a graph to N photos, as classes of a data version.

    ranked: (N, k), best first; -2 for a label that only the graph knows, and for a photo that it rejects.
    probability: (N,) float32 of the best class, in [0, 1].
    target: (N,) class of the label; -1 for a label that no training photo has.
    """

    ranked: NDArray[np.int64]
    probability: NDArray[np.float32]
    target: NDArray[np.int64]


def ranked_answers(
    session: onnxruntime.InferenceSession, photos: Photos
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes (N, k) that the graph answers, best first, and the probability (N,) of the best."""
    answers, done = np.empty((len(photos), session.get_outputs()[0].shape[1]), np.int64), 0
    probability = np.empty(len(photos), np.float32)
    for batch in with_progress(photos.in_order(BATCH), "answers of the graph", len(photos)):
        ids, probs = session.run(["ids", "probs"], {"image": batch.numpy()})
        answers[done : done + len(batch)], probability[done : done + len(batch)] = ids, probs[:, 0]
        done += len(batch)
    return answers, probability


def test_rows(manifest: Manifest) -> NDArray[np.int64]:
    """Positions of the photos on which accuracy is measured."""
    return np.flatnonzero((manifest.split == "test") & manifest.kept)


def measure(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> Answers:
    """Answers of the graph for rows of a data version, as classes of that version.

    The labels of the graph and of the version may differ, as the graph may be older. They are matched by name.
    """
    session = open_session(graph, on_gpu=torch.cuda.is_available())
    side = session.get_inputs()[0].shape[1]
    ids, probability = ranked_answers(session, Photos(manifest, rows, side=side))
    return Answers(in_classes_of(manifest.classes, graph, ids), probability, manifest.target[rows])


def measure_and_keep(graph: Path, manifest: Manifest, rows: NDArray[np.int64], out: Path) -> Answers:
    """Answers as of `measure`; writes the features of the photos too, if products can be added to the graph."""
    kept = kept_rows(rows, manifest.target[rows])
    session = open_session(graph)
    side, number = session.get_inputs()[0].shape[1], session.get_outputs()[0].shape[1]
    batches = Photos(manifest, rows, side=side).in_order(BATCH)
    photos = (batch.numpy() for batch in with_progress(batches, "answers of the graph", len(rows)))
    answers = recorded(graph, photos, kept, out, on_gpu=torch.cuda.is_available())
    try:
        nothing = np.empty((0, number), np.int64), np.empty(0, np.float32)
        ids, probability = map(np.concatenate, zip(nothing, *answers, strict=True))
    except EnrolmentError as error:
        log.info("no features are kept: %s", error)
        return measure(graph, manifest, rows)
    np.save(out / ROWS, rows[kept])
    return Answers(in_classes_of(manifest.classes, graph, ids), probability, manifest.target[rows])


def write_answers(graph: Path, manifest: Manifest, out: Path) -> dict[str, float | None]:
    """Writes the graph's answers to the test photos (answers.npz), its accuracy (accuracy.json) and features.

    Returns the accuracy.
    """
    answers = measure_and_keep(graph, manifest, test_rows(manifest), out)
    np.savez(out / "answers.npz", **answers._asdict())
    figures = accuracy(answers.ranked, answers.target, train_counts=manifest.train_counts()).to_dict()
    (out / "accuracy.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def main() -> None:
    """Command line that measures one file."""
    parser = parser_for("data out", description="Measure the accuracy of an ONNX file on the test photos.")
    parser.add_argument("--graph", type=Path, required=True, help="ONNX file to measure")
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    write_answers(args.graph, read_manifest(args.data), args.out)


if __name__ == "__main__":
    run(main)
