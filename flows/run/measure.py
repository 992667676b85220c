"""Measurements of a graph on test photos: answers, accuracy and latency."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from durable import sha256
from flows.gate.gates import Hits
from flows.run.launch import run_child
from flows.run.run import ResultCache
from flows.workspace.results import DataFolder, Exported, Measured
from models.data.manifest import Manifest
from models.evaluation.accuracy import thirds

MEASURED = ("answers.npz", "accuracy.json")  # files of a Measured
log = logging.getLogger("cleanshelf")


def measure_graph(results: ResultCache, data: DataFolder, graph: Path, *, among: Path | None = None) -> Measured:
    """The answers of a graph to the test photos of a data version, and its accuracy: answers.npz and accuracy.json.

    Args:
        among: another graph; only photos whose label it knows count.
    """

    def work(out: Path) -> None:
        arguments: list[object] = ["--graph", graph, "--data", data, "--out", out]
        run_child("models.export.measure", arguments + (["--among", among] if among else []), say=log.info)

    depends_on = [data.name, sha256(graph), *([sha256(among)] if among else [])]
    return Measured(results.cached("measure", *depends_on, files=MEASURED, work=work))


def time_graphs(results: ResultCache, graphs: Sequence[Path]) -> tuple[float, ...]:
    """Milliseconds per photo of each graph in ONNX Runtime on one CPU thread of this machine, measured in turns."""

    def work(out: Path) -> None:
        run_child("models.export.timing", ["--out", out, "--graphs", *graphs], say=log.info)

    folder = results.cached("time", *map(sha256, graphs), files=["timing.json"], work=work)
    return tuple(json.loads((folder / "timing.json").read_bytes()))


def read_answers(manifest: Manifest, new: Exported | Measured, serving: Measured | None) -> Hits:
    """The hits of the new and the current model on the same photos. Labels without training photos do not count."""
    answers = np.load(new / "answers.npz")
    known = answers["target"] >= 0
    target = answers["target"][known]

    def hits(ranked: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ranked[known, 0] == target

    return Hits(
        target=target,
        new=hits(answers["ranked"]),
        serving=None if serving is None else hits(np.load(serving / "answers.npz")["ranked"]),
        labels=np.array(manifest.classes),
        third=thirds(manifest.train_counts()),
    )
