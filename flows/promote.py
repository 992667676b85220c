"""The flow that lets a staged model version answer. Back to one that answered before, a rollback goes without any flow."""

from __future__ import annotations

from prefect import flow

from flows.data.versions import DataVersions
from flows.endpoint.promotion import promote
from flows.errors import CorruptObject, GateRefused
from flows.orchestrator.events import happened
from flows.orchestrator.server import emit, orchestrated
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions, named
from flows.run.step import step
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger


def promote_version(workspace: Workspace, version: int) -> int:
    """Makes a registered version answer, without a request lost; its number.

    Raises:
        UnknownVersion: no such version.
        GateRefused: its verdict is not about these bytes, or compared them with what does not serve any more.
    """
    with workspace.lock("promote"):
        DataVersions(workspace).repair()
        ModelVersions(Ledger(workspace.root)).lineage(version)
        with orchestrated(workspace):
            return promotion(workspace, version)


@flow(name="promote", validate_parameters=False)
def promotion(workspace: Workspace, version: int) -> int:
    """Verify, switch."""
    before = ModelVersions(Ledger(workspace.root)).current()
    with workspace.lock("promote", name="serving"):
        if check_verdict(workspace, version):
            load(workspace, version)
            emit(happened("model.promoted", to="model", name=str(version), model_version=version, instead_of=before))
    return version


@step("check verdict")
def check_verdict(workspace: Workspace, version: int) -> bool:
    """Whether there is something to do, once every file is what was judged, against what serves now.

    Whatever is registered was let pass by the gates, or by somebody who overrode them.
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    lineage, serving = models.lineage(version), models.current()
    versions.verify(version)
    if versions.lineage(version)["files"]["model.onnx"] != lineage["graph_sha256"]:
        raise CorruptObject(f"model version {version}: its graph is not the one that was judged; publish its run again")
    if serving not in (version, lineage["parent"]):
        anew = f"`cleanshelf publish {lineage['run']}` judges it anew"
        way_out = "enrol or withdraw again" if "step" in lineage else anew
        judged = f"model version {version} was judged against {named(lineage['parent'])}"
        raise GateRefused([f"{judged}, but {named(serving)} serves now; {way_out}"])
    return serving != version


@step("switch")
def load(workspace: Workspace, version: int) -> None:
    """Loads it beside the one that serves, asks it golden photos, switches."""
    promote(workspace, version)
