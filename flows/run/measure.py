"""Measurements of a graph on test photos: answers, accuracy and latency."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from durable import sha256
from flows.gate.gates import Hits
from flows.run.launch import num_workers, run_child
from flows.run.run import ResultCache, code_hash, is_finished
from flows.workspace.results import DataFolder, Exported, Measured
from models.data.manifest import Manifest, read_manifest
from models.data.positions import positions
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


def compare_graph(results: ResultCache, data: DataFolder, graph: Path) -> Measured:
    """The measurement of a graph, which is asked only about test photos that are new since its export.

    If the answers of its export are gone, the graph is measured in full, as by `measure_graph`. Only then features are kept.
    """
    digest = sha256(graph)
    is_there = (results.folder("measure", data.name, digest) / "done.json").exists()
    before = None if is_there else answered_before(results, digest)
    if before is None:
        return measure_graph(results, data, graph)

    def work(out: Path) -> None:
        arguments = ["--graph", graph, "--data", data, "--before", before, "--out", out]
        run_child("models.export.measure", arguments, say=log.info, on_gpu=True, workers=num_workers(0))

    return Measured(results.cached("measure", data.name, digest, "since its export", files=MEASURED, work=work))


def answered_before(results: ResultCache, graph: str) -> Path | None:
    """The answers that a graph (SHA-256) gave when this source exported it; None if they are gone. They are verified."""
    for folder in _exports(results, [graph]):
        if _card(folder).get("code_hash") == code_hash() and is_finished(folder):
            return folder / "answers.npz"
    return None


def unanswered(results: ResultCache, data: DataFolder, graph: str) -> int:
    """Number of test photos that `compare_graph` has to ask a graph (SHA-256) about."""
    manifest = read_manifest(data)
    tested = manifest.id[(manifest.split == "test") & manifest.kept]
    before = answered_before(results, graph)
    if before is None:
        return len(tested)
    with np.load(before) as file:
        return int((positions(tested, file["photo"].astype(str)) < 0).sum())


def _exports(results: ResultCache, graphs: Sequence[str]) -> Iterator[Path]:
    """Folders of the exports of these graphs (SHA-256)."""
    for marker in results.workspace.runs.glob("stages/*/done.json"):
        with suppress(OSError, ValueError):
            if json.loads(marker.read_bytes()).get("model.onnx") in graphs:
                yield marker.parent


def measured_before(results: ResultCache, data: DataFolder, graphs: Iterable[str]) -> Measured | None:
    """A measurement of one of these graphs (SHA-256) on this data version that kept features; None if there is none.

    Every graph is measured when it is exported. The files are verified.
    """
    wanted = list(graphs)
    folders = [results.folder("measure", data.name, graph) for graph in wanted]
    for folder in _exports(results, wanted):
        with suppress(OSError, ValueError):
            if _card(folder).get("data_version") == data.name:
                folders.append(folder)
    return next((Measured(each) for each in folders if (each / ROWS).exists() and is_finished(each, MEASURED)), None)


def _card(folder: Path) -> Mapping[str, str]:
    """The metadata of the graph in the folder."""
    return Signature.read(folder / "model.onnx").metadata


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
