"""Back to what was: data without touching the endpoint, the endpoint without touching the data.

Plain functions, not flows: a rollback has to work while Prefect, or a training, is down. Where a Prefect server stays up, it is
told afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.data_version import DataVersions, Entry
from flows.endpoint import access, repository
from flows.errors import UnknownVersion
from flows.history import descent, withdrawn
from flows.ledger import Ledger
from flows.model_version import ModelVersions
from flows.prefect_server import happened, post, selected
from flows.purge import select
from flows.workspace import Workspace
from serving.control import Endpoint, activate


def rollback_data(workspace: Workspace, version: str) -> Entry:
    """Selects an earlier data version again, verified, as a new entry of the history.

    Raises:
        LocalEdits: data/ was edited by hand; nothing is overwritten.
        UnknownVersion: no such version.
    """
    with workspace.lock("data rollback"):
        versions = DataVersions(workspace)
        versions.repair()
        entry = select(versions, version)
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
            activate(versions, target)
        else:
            with Endpoint(found) as control:
                control.switch(versions, target)
        before = models.serving()
        if before != target:
            models.assign(target)
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
    if target not in models.served():
        raise UnknownVersion(f"model version {target} never served; `cleanshelf promote {target}` lets it")
    return target


def model_lineage(workspace: Workspace, version: int | None = None) -> dict[str, Any]:
    """The lineage of a model version, by default of the one that serves.

    Raises:
        UnknownVersion: no such version, or none serves.
    """
    models = ModelVersions(Ledger(workspace.root))
    wanted = models.serving() if version is None else version
    if wanted is None:
        raise UnknownVersion("no model serves yet; run `cleanshelf retrain` first")
    lineage = models.lineage(wanted)
    return {
        "version": wanted,
        "serving": wanted == models.serving(),
        "data_withdrawn": lineage["data_version"] in withdrawn_data(workspace),
        **lineage,
    }


def model_history(workspace: Workspace) -> list[dict[str, Any]]:
    """All model versions, newest first, each with whether its data, or what those were made of, were withdrawn since."""
    models, withdrawn = ModelVersions(Ledger(workspace.root)), withdrawn_data(workspace)
    return [
        {
            "version": entry.version,
            "serving": entry.serving,
            "parent": entry.lineage.get("parent"),
            "data_version": entry.data_version,
            "data_withdrawn": entry.data_version in withdrawn,
            "metrics": dict(entry.metrics),
            "recipe": entry.lineage.get("recipe"),
            "run": entry.run,
        }
        for entry in models.log()
    ]


def withdrawn_data(workspace: Workspace) -> set[str]:
    """Data versions that a rollback left behind and none brought back, and what was made of them.

    A model trained on one of them still serves, rightly, but people should see it.
    """
    entries = DataVersions(workspace).log()
    gone = withdrawn(reversed(entries))
    return {entry.id for entry in entries if not gone.isdisjoint(descent(entry.id, entries))}


def newest_standing(history: Sequence[dict[str, Any]]) -> int | None:
    """The newest of the model versions (as `model_history` gives them) whose data stand, with all that those were made of."""
    return next((entry["version"] for entry in history if not entry["data_withdrawn"]), None)


def advice(history: Sequence[dict[str, Any]]) -> str:
    """What to do where the data of the serving model were withdrawn; "" where they stand. Nobody does it by himself."""
    serving = next((entry for entry in history if entry["serving"]), None)
    if serving is None or not serving["data_withdrawn"]:
        return ""
    standing = newest_standing(history)
    earlier = f"`cleanshelf model rollback {standing}` goes to {standing}, the newest whose data stand, and "
    return (f"model version {serving['version']} goes on answering, though its data were withdrawn: "
            f"{earlier if standing else ''}`cleanshelf retrain` makes a new one")  # fmt: skip
