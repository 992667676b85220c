"""A judged graph becomes the version that answers: measured, registered, staged, switched in. Nothing here needs Prefect."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.endpoint import endpoint, repository
from flows.launch import run_child
from flows.ledger import Ledger
from flows.model_version import ModelVersions
from flows.run import Run
from flows.workspace import Workspace
from serving.control import Endpoint
from serving.durable import sha256

log = logging.getLogger("cleanshelf")


def measure_graph(run: Run, data: Path, graph: Path, *, among: Path | None = None) -> dict[str, float]:
    """Accuracy of a graph on the test photos of a data version, found again if it was measured before.

    Args:
        among: another graph; only photos count whose label this one knows.
    """

    def work(out: Path) -> None:
        arguments: list[object] = ["--graph", graph, "--data", data, "--out", out]
        run_child("models.export.measure", arguments + (["--among", among] if among else []), say=log.info)

    depends_on = [data.name, sha256(graph), *([sha256(among)] if among else [])]
    found: dict[str, float] = json.loads((run.stage("measure", *depends_on, work=work) / "accuracy.json").read_bytes())
    return found


def release(
    workspace: Workspace, graph: Path, *, record: Mapping[str, Any], labels: Sequence[str], golden: NDArray[np.uint8]
) -> int:
    """Loads the graph beside the version that serves, checks golden photos over the wire, switches; its number.

    The caller holds the lock "serving". Bytes that have a number keep it: a killed publication goes on.

    Args:
        record: what to register; `graph_sha256` is that of the graph.
        golden: (G, S, S, 3).
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    with endpoint(workspace) as access:
        versions.sweep()
        versions.check_contract(graph)
        number = number_of(models, record["graph_sha256"]) or models.register(record)
        if number not in versions.versions():
            versions.stage(graph, version=number, labels=labels, record=models.record(number), golden=golden)
        with Endpoint(access) as control:
            control.switch(versions, number)
        models.assign(number)
    log.info("model version %d answers", number)
    return number


def number_of(models: ModelVersions, graph_sha256: str) -> int | None:
    """The version under which exactly these bytes were registered."""
    return next((entry.version for entry in models.log() if entry.record["graph_sha256"] == graph_sha256), None)
