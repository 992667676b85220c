"""Measures a graph on test photos: its answers, its accuracy and its latency."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from durable import sha256
from flows.gate.gates import Hits
from flows.run.launch import run_child
from flows.run.run import ResultCache
from flows.workspace.results import DataFolder, Exported, Measured
from models.data.manifest import Manifest
from models.evaluation.accuracy import thirds

log = logging.getLogger("cleanshelf")


def measure_graph(results: ResultCache, data: DataFolder, graph: Path, *, among: Path | None = None) -> Measured:
    """The folder with what a graph says of the test photos of a data version: answers.npz and accuracy.json.

    Args:
        among: another graph; only photos count whose label this one knows.
    """

    def work(out: Path) -> None:
        arguments: list[object] = ["--graph", graph, "--data", data, "--out", out]
        run_child("models.export.measure", arguments + (["--among", among] if among else []), say=log.info)

    depends_on = [data.name, sha256(graph), *([sha256(among)] if among else [])]
    return Measured(results.cached("measure", *depends_on, work=work))


def time_graphs(results: ResultCache, graphs: Sequence[Path]) -> tuple[float, ...]:
    """ms per photo of each graph, by ONNX Runtime on one thread of this machine's CPU; they are asked in turns."""

    def work(out: Path) -> None:
        run_child("models.export.timing", ["--out", out, "--graphs", *graphs], say=log.info)

    folder = results.cached("time", *map(sha256, graphs), work=work)
    return tuple(json.loads((folder / "timing.json").read_bytes()))


def read_answers(manifest: Manifest, new: Exported | Measured, serving: Measured | None) -> Hits:
    """The answers in two folders of `measure_graph` of the same photos; a label that no training photo bears counts for nothing."""
    found = [np.load(folder / "answers.npz") for folder in (new, serving) if folder is not None]
    target = found[0]["target"]
    hits = [each["ranked"][:, 0] == target for each in found]
    known, third = target >= 0, thirds(manifest.train_counts())
    return Hits(target[known], hits[0][known], hits[1][known] if serving else None, np.array(manifest.classes), third)
