"""Measure the accuracy of an ONNX file, as it will be served, on the test photos of a data version.

`python -m models.export.measure --graph FILE --data DIR [--among FILE] --out DIR`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.positions import positions
from models.evaluation.accuracy import accuracy
from models.export.patch import read_metadata
from models.export.session import open_session
from models.training.command import log_progress, parser_for, run

if TYPE_CHECKING:
    import onnxruntime

BATCH = 8


def ranked_answers(session: onnxruntime.InferenceSession, photos: Photos) -> NDArray[np.int64]:
    """(N, k) classes that the graph answers, best first."""
    none = np.empty((0, session.get_outputs()[0].shape[1]), np.int64)
    return np.concatenate(
        [none, *(session.run(["ids"], {"image": batch.numpy()})[0] for batch in photos.in_order(BATCH))]
    )


def test_rows(manifest: Manifest) -> NDArray[np.int64]:
    """Positions of the photos on which accuracy is measured."""
    return np.flatnonzero((manifest.split == "test") & manifest.kept)


def known_to(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows whose label is a class of the graph."""
    return rows[positions(manifest.label[rows], json.loads(read_metadata(graph)["labels"])) >= 0]


def measure(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Answers of the graph for rows of a data version, as classes of that version: ranked (N, k) and target (N,).

    The labels of the graph and of the version may differ, as the graph may be older. They are matched by name; a label
    that only the graph knows becomes -2, which is never correct.
    """
    session = open_session(graph)
    side = session.get_inputs()[0].shape[1]
    ids = ranked_answers(session, Photos(manifest, rows, side=side))
    own = {label: i for i, label in enumerate(manifest.classes)}
    translate = np.array([own.get(label, -2) for label in json.loads(read_metadata(graph)["labels"])] + [-2])
    return translate[ids], manifest.target[rows]


def write_answers(graph: Path, manifest: Manifest, out: Path, *, among: Path | None = None) -> dict[str, float | None]:
    """Writes the graph's answers to the test photos (answers.npz) and its accuracy (accuracy.json); returns the latter.

    Args:
        among: another graph; only photos whose label it knows are counted.
    """
    rows = test_rows(manifest) if among is None else known_to(among, manifest, test_rows(manifest))
    ranked, target = measure(graph, manifest, rows)
    np.savez(out / "answers.npz", ranked=ranked, target=target)
    figures = accuracy(ranked, target, train_counts=manifest.train_counts()).to_dict()
    (out / "accuracy.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def main() -> None:
    """Command line that measures one file."""
    parser = parser_for("data out", description="Measure the accuracy of an ONNX file on the test photos.")
    parser.add_argument("--graph", type=Path, required=True, help="ONNX file to measure")
    parser.add_argument("--among", type=Path, help="ONNX file; count only photos whose label it knows")
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    write_answers(args.graph, read_manifest(args.data), args.out, among=args.among)


if __name__ == "__main__":
    run(main)
