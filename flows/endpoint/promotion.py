"""A graph is measured, and a judged one becomes the version that answers: registered, staged, switched in.

Nothing here needs Prefect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.endpoint.server import endpoint
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.settings import Settings
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint

log = logging.getLogger("cleanshelf")


def register_and_promote(
    workspace: Workspace, graph: Path, *, lineage: Mapping[str, Any], labels: Sequence[str], golden: NDArray[np.uint8]
) -> int:
    """Lets a judged graph answer; its number. Arguments and locks as for `register` and `promote`."""
    settings = Settings()
    with endpoint(workspace, settings):  # first: if the server does not start, nothing has been registered
        number = register(workspace, graph, lineage=lineage, labels=labels, golden=golden, settings=settings)
        promote(workspace, number, settings)
    return number


def register(
    workspace: Workspace,
    graph: Path,
    *,
    lineage: Mapping[str, Any],
    labels: Sequence[str],
    golden: NDArray[np.uint8],
    settings: Settings | None = None,
) -> int:
    """Registers the graph and stages it in the repository, whole and not yet served; its number.

    The caller holds the lock "serving". Bytes that have a number keep it: a killed publication goes on.

    Args:
        lineage: all but `version` and `files`; `graph_sha256` is that of the graph.
        golden: (G, S, S, 3).
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace, settings)
    versions.sweep()
    versions.check_contract(graph)
    number = number_for(lineage, models=models, versions=versions)
    if number not in versions.versions():
        versions.write(graph, version=number, labels=labels, lineage=lineage, golden=golden)
    models.register(versions.lineage(number))
    return number


def promote(workspace: Workspace, number: int, settings: Settings | None = None) -> None:
    """Loads a staged version beside the one that serves, checks golden photos over the wire, switches.

    The caller holds the lock "serving".
    """
    settings = settings or Settings()
    with endpoint(workspace, settings) as access, Endpoint(access) as control:
        control.switch(repository(workspace, settings), number)
        ModelVersions(Ledger(workspace.root)).promote(number)
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
