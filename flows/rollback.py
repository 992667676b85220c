"""Back to what was: data without touching the endpoint, the endpoint without touching the data.

Plain functions, not flows: a rollback has to work while Prefect, or a training, is down. Where a Prefect server stays up, it is
told afterwards.
"""

from __future__ import annotations

from flows.data.history import Entry
from flows.data.versions import DataVersions
from flows.endpoint.server import access
from flows.errors import UnknownVersion
from flows.orchestrator.events import happened, post, selected
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.server.control import Endpoint, load_on_start


def rollback_data(workspace: Workspace, version: str) -> Entry:
    """Selects an earlier data version again, verified, as a new entry of the history.

    Raises:
        LocalEdits: data/ was edited by hand; nothing is overwritten.
        UnknownVersion: no such version.
    """
    with workspace.lock("data rollback"):
        versions = DataVersions(workspace)
        versions.repair()
        entry = versions.select(version)
    post(workspace, selected("rolled-back", entry))
    return entry


def rollback_model(workspace: Workspace, version: int | None = None) -> int:
    """Makes a model version answer that did before; requests keep being answered meanwhile.

    No gate is asked: it passed then, and a rollback has to be possible at any time.

    Args:
        version: by default the one that served before.

    Raises:
        UnknownVersion: no such version, or it never served.
    """
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    with workspace.lock("model rollback", name="serving"):
        target = rollback_target(workspace, version)
        found = access(workspace)
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
    """The version that `rollback_model` would make answer.

    Raises:
        UnknownVersion: no such version, or it never served.
    """
    models = ModelVersions(Ledger(workspace.root))
    target = models.previous() if version is None else version
    models.lineage(target)
    if target not in models.promoted():
        raise UnknownVersion(f"model version {target} never served; `cleanshelf promote {target}` lets it")
    return target
