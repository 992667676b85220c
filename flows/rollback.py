"""Rollbacks: of the data without touching the endpoint, and of the endpoint without touching the data.

These are plain functions, not flows: a rollback has to work while Prefect is down or a training is running. A permanent
Prefect server gets an event afterwards.
"""

from __future__ import annotations

from flows.data.history import Entry
from flows.data.versions import DataVersions
from flows.endpoint.server import access
from flows.errors import UnknownVersion
from flows.orchestrator.events import happened, post, selected
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.settings import Settings
from flows.workspace import DATA_LOCK, Workspace
from flows.workspace.ledger import Ledger
from serving.server.control import Endpoint, load_on_start


def rollback_data(workspace: Workspace, version: str) -> Entry:
    """Verifies an earlier data version and selects it again, as a new entry of the history.

    Raises:
        LocalEdits: `data/` was edited by hand; nothing is overwritten.
        UnknownVersion: there is no such version.
    """
    with workspace.lock("data rollback", name=DATA_LOCK):
        versions = DataVersions(workspace)
        versions.repair()
        entry = versions.select(version)
    post(workspace, selected("rolled-back", entry))
    return entry


def rollback_model(workspace: Workspace, version: int | None = None) -> int:
    """Makes an earlier model version the current model again, without a gap in answers, and returns its number.

    No gate judges it: it passed when it was promoted, and a rollback has to be possible at any time.

    Args:
        version: the target; by default the version that was current before.

    Raises:
        UnknownVersion: there is no such version, or it has never been the current model.
    """
    settings = Settings()
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace, settings)
    with workspace.lock("model rollback", name="serving"):
        target = rollback_target(workspace, version)
        found = access(workspace, settings)
        if found is None:
            load_on_start(versions, target)
        else:
            with Endpoint(found) as control:
                control.switch(versions, target)
        before = models.current()
        if before != target:
            models.promote(target)
    if before != target:
        post(
            workspace,
            happened("model.rolled-back", to="model", name=str(target), model_version=target, instead_of=before),
        )
    return target


def rollback_target(workspace: Workspace, version: int | None) -> int:
    """The version that `rollback_model` would make the current model.

    Raises:
        UnknownVersion: there is no such version, or it has never been the current model.
    """
    models = ModelVersions(Ledger(workspace.root))
    target = models.previous() if version is None else version
    models.lineage(target)
    if target not in models.promoted():
        raise UnknownVersion(
            f"model version {target} has never been the current model; `cleanshelf promote {target}` promotes it"
        )
    return target
