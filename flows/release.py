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
from serving.repository import ModelRepository

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
        record: the lineage but for `version` and `files`; `graph_sha256` is that of the graph.
        golden: (G, S, S, 3).
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    with endpoint(workspace) as access:
        versions.sweep()
        versions.check_contract(graph)
        number = number_for(record, models=models, versions=versions)
        if number not in versions.versions():
            versions.stage(graph, version=number, labels=labels, record=record, golden=golden)
        models.register(versions.record(number))
        with Endpoint(access) as control:
            control.switch(versions, number)
        models.assign(number)
    log.info("model version %d answers", number)
    return number


def number_for(record: Mapping[str, Any], *, models: ModelVersions, versions: ModelRepository) -> int:
    """The version that holds exactly these bytes, else a number that no version ever had.

    Files come before the registration, so a killed publication may have left a version that is in the repository alone.
    """
    registered = {entry.version: entry.record for entry in models.log()}
    here = {version: registered.get(version) or versions.record(version) for version in versions.versions()}
    found = [version for version, lineage in here.items() if lineage.get("graph_sha256") == record["graph_sha256"]]
    return max(found, default=1 + max(here.keys() | registered, default=0))
