"""A graph is measured, and a judged one becomes the version that answers: registered, staged, switched in.

Nothing here needs Prefect.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.endpoint import endpoint, repository
from flows.gates import Answers
from flows.launch import run_child
from flows.ledger import Ledger
from flows.model_version import ModelVersions
from flows.run import Run
from flows.workspace import Workspace
from models.data.manifest import Manifest
from models.evaluate import thirds
from serving.control import Endpoint
from serving.durable import sha256
from serving.repository import ModelRepository

log = logging.getLogger("cleanshelf")


def measure_graph(run: Run, data: Path, graph: Path, *, among: Path | None = None) -> Path:
    """The folder with what a graph says of the test photos of a data version: answers.npz and accuracy.json.

    Args:
        among: another graph; only photos count whose label this one knows.
    """

    def work(out: Path) -> None:
        arguments: list[object] = ["--graph", graph, "--data", data, "--out", out]
        run_child("models.export.measure", arguments + (["--among", among] if among else []), say=log.info)

    depends_on = [data.name, sha256(graph), *([sha256(among)] if among else [])]
    return run.stage("measure", *depends_on, work=work)


def time_graphs(run: Run, graphs: Sequence[Path]) -> tuple[float, ...]:
    """ms per photo of each graph, by ONNX Runtime on one thread of this machine's CPU; they are asked in turns."""

    def work(out: Path) -> None:
        run_child("models.export.timing", ["--out", out, "--graphs", *graphs], say=log.info)

    folder = run.stage("time", *map(sha256, graphs), work=work)
    return tuple(json.loads((folder / "timing.json").read_bytes()))


def read_answers(manifest: Manifest, new: Path, serving: Path | None) -> Answers:
    """The answers in two folders of `measure_graph` of the same photos; a label that no training photo bears counts for nothing."""
    found = [np.load(folder / "answers.npz") for folder in (new, serving) if folder is not None]
    target = found[0]["target"]
    hits = [each["ranked"][:, 0] == target for each in found]
    known, third = target >= 0, thirds(manifest.train_counts())
    return Answers(
        target[known], hits[0][known], hits[1][known] if serving else None, np.array(manifest.classes), third
    )


def release(
    workspace: Workspace, graph: Path, *, lineage: Mapping[str, Any], labels: Sequence[str], golden: NDArray[np.uint8]
) -> int:
    """Lets a judged graph answer; its number. Arguments and locks as for `put` and `serve`."""
    with endpoint(workspace):  # before anything is registered: a server that does not start leaves no trace
        number = put(workspace, graph, lineage=lineage, labels=labels, golden=golden)
        serve(workspace, number)
    return number


def put(
    workspace: Workspace, graph: Path, *, lineage: Mapping[str, Any], labels: Sequence[str], golden: NDArray[np.uint8]
) -> int:
    """Registers the graph and stages it in the repository, whole and not yet served; its number.

    The caller holds the lock "serving". Bytes that have a number keep it: a killed publication goes on.

    Args:
        lineage: all but `version` and `files`; `graph_sha256` is that of the graph.
        golden: (G, S, S, 3).
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    versions.sweep()
    versions.check_contract(graph)
    number = number_for(lineage, models=models, versions=versions)
    if number not in versions.versions():
        versions.stage(graph, version=number, labels=labels, lineage=lineage, golden=golden)
    models.register(versions.lineage(number))
    return number


def serve(workspace: Workspace, number: int) -> None:
    """Loads a staged version beside the one that serves, checks golden photos over the wire, switches.

    The caller holds the lock "serving".
    """
    with endpoint(workspace) as access, Endpoint(access) as control:
        control.switch(repository(workspace), number)
        ModelVersions(Ledger(workspace.root)).assign(number)
    log.info("model version %d answers", number)


def number_for(lineage: Mapping[str, Any], *, models: ModelVersions, versions: ModelRepository) -> int:
    """The version that holds exactly these bytes, else a number that no version ever had.

    What somebody overrode the gates for is a version of its own. Files come before the registration, so a killed publication
    may have left a version that is in the repository alone.
    """
    registered = {entry.version: entry.lineage for entry in models.log()}
    here = {version: registered.get(version) or versions.lineage(version) for version in versions.versions()}
    found = [version for version, known in here.items() if _same(known, lineage)]
    return max(found, default=1 + max(here.keys() | registered, default=0))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("graph_sha256", "override"))
