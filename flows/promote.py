"""The flow that promotes a registered model version. A rollback to an earlier version needs no flow (flows.rollback)."""

from __future__ import annotations

from flows.data.versions import DataVersions
from flows.endpoint.promotion import promote
from flows.errors import CorruptObject, GateRefused
from flows.orchestrator.events import happened, standing_server
from flows.orchestrator.reports import emit
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions, named
from flows.run.step import as_flow, step
from flows.steps.clean import select_cleaned
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger


def promote_version(workspace: Workspace, version: int) -> int:
    """Makes a registered version the current model without losing a request. Returns its number.

    Raises:
        UnknownVersion: there is no such version.
        CorruptObject: its graph is not the one that was judged.
        GateRefused: its verdict compared it with a model that is no longer current.
    """
    with workspace.lock("promote"):
        DataVersions(workspace).repair(staging=False)
        ModelVersions(Ledger(workspace.root)).lineage(version)
        if not standing_server(workspace):
            return promotion(workspace, version)
        from flows.orchestrator.server import orchestrated

        with orchestrated(workspace):
            return as_flow(promotion, "promote")(workspace, version)


def promotion(workspace: Workspace, version: int) -> int:
    """Checks the verdict, promotes the version, and selects the data version that it learnt from."""
    models = ModelVersions(Ledger(workspace.root))
    before, lineage = models.current(), models.lineage(version)
    with workspace.lock("promote", name="serving"):
        if check_verdict(workspace, version):
            switch(workspace, version)
            emit(happened("model.promoted", to="model", name=str(version), model_version=version, instead_of=before))
    select_cleaned(workspace, str(lineage.get("data_version")), run=str(lineage.get("run")))
    return version


@step("check verdict")
def check_verdict(workspace: Workspace, version: int) -> bool:
    """True if the version has to be promoted; False if it is the current model already.

    Every registered version passed the gates, or a user overrode them. So it is enough to check that its files are those
    that were judged, and that they were judged against the current model.
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    lineage, current = models.lineage(version), models.current()
    versions.verify(version)
    if versions.lineage(version)["files"]["model.onnx"] != lineage["graph_sha256"]:
        raise CorruptObject(f"model version {version}: its graph is not the one that was judged; publish its run again")
    if current not in (version, lineage["parent"]):
        publish = f"`cleanshelf publish {lineage['run']}` judges it again"
        way_out = "enrol or withdraw again" if "step" in lineage else publish
        judged = f"model version {version} was judged against {named(lineage['parent'])}"
        raise GateRefused([f"{judged}, but {named(current)} serves now; {way_out}"])
    return current != version


@step("switch")
def switch(workspace: Workspace, version: int) -> None:
    """Loads the version beside the current model, checks its golden answers, and switches to it."""
    promote(workspace, version)
