"""Registers a graph that passed the gates, writes it to the model repository, and promotes it. Needs no Prefect."""

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
from serving.repository.curve import CURVE, measure
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint

log = logging.getLogger("cleanshelf")


def register_and_promote(
    workspace: Workspace, graph: Path, *, lineage: Mapping[str, Any], labels: Sequence[str], golden: NDArray[np.uint8]
) -> int:
    """Makes a graph the current model and returns its version. Arguments and locks as for `register` and `promote`."""
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
    """Writes the graph to the repository, registers it without loading it, and returns its version.

    The caller holds the lock "serving". A graph keeps a version that it has, so that a killed publication can be repeated.

    Args:
        lineage: everything but `version`, `files` and `curve`; `graph_sha256` is the hash of `graph`.
        golden: photos (G, S, S, 3) of the golden answers.
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace, settings)
    versions.sweep()
    versions.check_contract(graph)
    number = number_for(lineage, models=models, versions=versions)
    if number not in versions.versions():
        facts = {**lineage, **_curve(graph, versions)}
        versions.write(graph, version=number, labels=labels, lineage=facts, golden=golden)
    models.register(versions.lineage(number))
    return number


def promote(workspace: Workspace, number: int, settings: Settings | None = None) -> None:
    """Loads a registered version beside the current model, checks its golden answers on the server, and switches to it.

    The caller holds the lock "serving".
    """
    settings = settings or Settings()
    with endpoint(workspace, settings) as access, Endpoint(access) as control:
        control.switch(repository(workspace, settings), number)
        ModelVersions(Ledger(workspace.root)).promote(number)
    log.info("model version %d is the current model", number)


def number_for(lineage: Mapping[str, Any], *, models: ModelVersions, versions: ModelRepository) -> int:
    """The version that holds exactly this graph with the same verdict, else the next unused number.

    What the registry says of a version is never changed: a graph that was judged against another model, or that another
    override let in, gets a version of its own. Files are written before the version is registered, so a killed
    publication may have left a version that only the repository knows.
    """
    registered = {entry.version: entry.lineage for entry in models.log()}
    written = {version: registered.get(version) or versions.lineage(version) for version in versions.versions()}
    found = [version for version, known in written.items() if _is_same(known, lineage)]
    return max(found, default=1 + max(written.keys() | registered, default=0))


def _curve(graph: Path, versions: ModelRepository) -> dict[str, Any]:
    """Entry of the lineage with the graph's times by batch size; empty if this machine lacks the server's device."""
    curve = measure(graph, versions.accelerator)
    if curve is None:
        log.info("publish: %s is not available here, so batches keep their default size", versions.accelerator.name)
        return {}
    limit_ms = versions.latency_ms or 0
    if curve.wait_ms(1) > limit_ms and not versions.joined:
        log.warning(
            "publish: one photo takes %.0f ms here, so under load a photo waits longer than the %.0f ms of "
            "CLEANSHELF_TRITON_LATENCY_MS; photos are computed one by one. Allow %.0f ms, or train a smaller model",
            curve.ms[1], limit_ms, curve.wait_ms(1),
        )  # fmt: skip
    return {CURVE: curve.facts()}


def _is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(first.get(key) == second.get(key) for key in ("graph_sha256", "parent", "verdict", "override"))
