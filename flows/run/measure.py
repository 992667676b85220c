"""Measurements of a graph on test photos: answers, accuracy and latency."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from durable import sha256
from flows.gate.gates import Hits
from flows.run.launch import num_workers, run_child
from flows.run.run import ResultCache, is_finished
from flows.workspace.results import DataFolder, Exported, Measured
from models.data.manifest import Manifest
from models.evaluation.accuracy import thirds
from models.export.features import ROWS
from serving.signature import Signature

MEASURED = ("answers.npz", "accuracy.json")  # files of a Measured
log = logging.getLogger("cleanshelf")


def measure_graph(results: ResultCache, data: DataFolder, graph: Path) -> Measured:
    """The answers of a graph to the test photos of a data version: answers.npz, accuracy.json, and features."""

    def work(out: Path) -> None:
        arguments = ["--graph", graph, "--data", data, "--out", out]
        run_child("models.export.measure", arguments, say=log.info, on_gpu=True, workers=num_workers(0))

    return Measured(results.cached("measure", data.name, sha256(graph), files=MEASURED, work=work))


def measured_before(results: ResultCache, data: DataFolder, graphs: Iterable[str]) -> Measured | None:
    """A measurement of one of these graphs (SHA-256) on this data version that kept features; None if there is none.

    Every graph is measured when it is exported. The files are verified.
    """
    wanted = list(graphs)
    folders = [results.folder("measure", data.name, graph) for graph in wanted]
    for marker in results.workspace.runs.glob("stages/*/done.json"):
        with suppress(OSError, ValueError):
            if (
                json.loads(marker.read_bytes()).get("model.onnx") in wanted
                and _data_version(marker.parent) == data.name
            ):
                folders.append(marker.parent)
    return next((Measured(each) for each in folders if (each / ROWS).exists() and is_finished(each, MEASURED)), None)


def _data_version(folder: Path) -> str | None:
    """The data version that the graph in the folder was trained and measured on."""
    return Signature.read(folder / "model.onnx").metadata.get("data_version")


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
        photo=manifest.id[(manifest.split == "test") & manifest.kept][known],
        target=target,
        new=hits(answers["ranked"]),
        serving=None if serving is None else hits(np.load(serving / "answers.npz")["ranked"]),
        labels=np.array(manifest.classes),
        third=thirds(manifest.train_counts()),
    )
