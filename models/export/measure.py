"""Measure the accuracy of an ONNX file, as it will be served, on the test photos of a data version.

`python -m models.export.measure --graph FILE --data DIR --out DIR`, also by several workers (models.distributed): each
asks the graph on its own GPU about a part of the photos.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models import distributed
from models.data.machine import num_loaders
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.positions import positions
from models.data.samplers import spread_over_classes
from models.errors import EnrolmentError
from models.evaluation.accuracy import accuracy
from models.export.features import ROWS, in_classes_of, join, kept_rows, recorded
from models.export.parity import require_same_on_gpu
from models.export.session import CUDA, open_session
from models.networks.network import best_device
from models.progress import with_progress
from models.training.command import log_progress, parser_for, run

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)
BATCH = 8
ANSWERS = "answers.npz"  # Answers, the ids of their photos (N,), and the graph's own classes (N, k)
COMPARED = 24  # photos about which a GPU and the CPU are asked before the GPU answers all


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
    """Classes (n, k) that the graph answers, best first, and the probability (n,) of the best, of this worker's photos."""
    own = distributed.part(len(photos))
    answers, done = np.empty((own.stop - own.start, session.get_outputs()[0].shape[1]), np.int64), 0
    probability = np.empty(len(answers), np.float32)
    for batch in with_progress(photos.in_order(BATCH, part=own), "answers of the graph", len(answers)):
        ids, probs = session.run(["ids", "probs"], {"image": batch.numpy()})
        answers[done : done + len(batch)], probability[done : done + len(batch)] = ids, probs[:, 0]
        done += len(batch)
    return answers, probability


def test_rows(manifest: Manifest) -> NDArray[np.int64]:
    """Positions of the photos on which accuracy is measured."""
    return np.flatnonzero((manifest.split == "test") & manifest.kept)


def measure(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> Answers:
    """Answers of the graph for rows of a data version, as classes of that version; each worker asks about a part of them.

    The labels of the graph and of the version may differ, as the graph may be older. They are matched by name.
    """
    ids, probability = ask(graph, manifest, rows)
    return Answers(in_classes_of(manifest.classes, graph, ids), probability, manifest.target[rows])


def ask(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes (N, k) of the graph, best first, and the probability (N,) of the best, for rows of a data version."""
    photos, gpu = photos_for(graph, manifest, rows)
    return _gathered(*ranked_answers(open_session(graph, gpu=gpu), photos))


def ask_and_keep(
    graph: Path, manifest: Manifest, rows: NDArray[np.int64], out: Path
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Answers as of `ask`; writes the features of the photos too, if products can be added to the graph."""
    photos, gpu = photos_for(graph, manifest, rows)
    number = open_session(graph).get_outputs()[0].shape[1]
    own, kept = distributed.part(len(rows)), kept_rows(rows, manifest.target[rows])
    folders = [out / f"part-{worker}" for worker in range(distributed.world())]
    folders[distributed.rank()].mkdir(exist_ok=True)
    asked = with_progress(photos.in_order(BATCH, part=own), "answers of the graph", own.stop - own.start)
    answers = recorded(graph, (each.numpy() for each in asked), kept[own], folders[distributed.rank()], gpu=gpu)
    try:
        nothing = np.empty((0, number), np.int64), np.empty(0, np.float32)
        ids, probability = map(np.concatenate, zip(nothing, *answers, strict=True))
    except EnrolmentError as error:
        log.info("no features are kept: %s", error)
        folders[distributed.rank()].rmdir()
        return ask(graph, manifest, rows)
    gathered = _gathered(ids, probability)
    if distributed.rank() == 0:  # all have written theirs, as their answers are here
        join(folders, out)
        np.save(out / ROWS, rows[kept])
    return gathered


def ask_since(
    before: Path, graph: Path, manifest: Manifest, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Answers as of `ask`, those that the graph gave before from their file (ANSWERS); a photo's id is the hash of its bytes."""
    with np.load(before) as file:
        place = positions(manifest.id[rows], file["photo"].astype(str))
        known, best = file["ids"], file["probability"]
    new = place < 0
    log.info("%d of %d photos were asked about before", len(rows) - int(new.sum()), len(rows))
    ids, probability = np.empty((len(rows), known.shape[1]), np.int64), np.empty(len(rows), np.float32)
    ids[~new], probability[~new] = known[place[~new]], best[place[~new]]
    ids[new], probability[new] = ask(graph, manifest, rows[new])
    return ids, probability


def photos_for(graph: Path, manifest: Manifest, rows: NDArray[np.int64]) -> tuple[Photos, int | None]:
    """The photos as the graph takes them, and the number of this worker's GPU on which ONNX Runtime answers; None for the CPU.

    Raises:
        ParityError: a GPU answers otherwise than the CPU.
    """
    device, session = best_device(), open_session(graph)
    side = session.get_inputs()[0].shape[1]
    photos = Photos(manifest, rows, side=side, loaders=num_loaders(0, device))
    if device.type != "cuda" or not len(rows):
        return photos, None
    gpu = torch.cuda.current_device()
    on_gpu = open_session(graph, gpu=gpu)
    if on_gpu.get_providers()[0] != CUDA:
        log.warning("ONNX Runtime cannot use the GPU, so the graph is measured on the CPU, which takes far longer; install "
                    "the CUDA libraries that this release of onnxruntime-gpu asks for")  # fmt: skip
        return photos, None
    some = spread_over_classes(rows, manifest.target[rows], count=COMPARED)
    sample = torch.cat(list(Photos(manifest, some, side=side).in_order(BATCH)))
    require_same_on_gpu(on_gpu, session, sample.numpy())
    return photos, gpu


def _gathered(
    ids: NDArray[np.int64], probability: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The answers of all workers."""
    every, best = (distributed.concat(torch.from_numpy(each)).numpy() for each in (ids, probability))
    return every, best


def write_answers(graph: Path, manifest: Manifest, out: Path, *, before: Path | None = None) -> dict[str, float | None]:
    """Writes the graph's answers to the test photos (ANSWERS), its accuracy (accuracy.json) and features.

    Returns the accuracy.

    before: ANSWERS of an earlier measurement of the same graph; only other photos are asked about, and no features are kept.
    """
    rows = test_rows(manifest)
    ids, best = ask_since(before, graph, manifest, rows) if before else ask_and_keep(graph, manifest, rows, out)
    answers = Answers(in_classes_of(manifest.classes, graph, ids), best, manifest.target[rows])
    figures = accuracy(answers.ranked, answers.target, train_counts=manifest.train_counts()).to_dict()
    if distributed.rank() == 0:
        np.savez(out / ANSWERS, **answers._asdict(), photo=manifest.id[rows].astype("S"), ids=ids)
        (out / "accuracy.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def main() -> None:
    """Command line that measures one file."""
    parser = parser_for("data out", description="Measure the accuracy of an ONNX file on the test photos.")
    parser.add_argument("--graph", type=Path, required=True, help="ONNX file to measure")
    parser.add_argument("--before", type=Path, help=f"{ANSWERS} of an earlier measurement of the same file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        write_answers(args.graph, read_manifest(args.data), args.out, before=args.before)


if __name__ == "__main__":
    run(main)
