"""Lineage and history of the registered model versions, and which of them were trained on withdrawn data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.data.history import Entry, descent, withdrawn
from flows.data.versions import DataVersions
from flows.errors import UnknownVersion
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger


def model_lineage(workspace: Workspace, version: int | None = None) -> dict[str, Any]:
    """The lineage of a model version, by default of the current model.

    Raises:
        UnknownVersion: there is no such version, or no current model.
    """
    models = ModelVersions(Ledger(workspace.root))
    wanted = models.current() if version is None else version
    if wanted is None:
        raise UnknownVersion("there is no current model yet; run `cleanshelf retrain` first")
    lineage = models.lineage(wanted)
    return {
        "version": wanted,
        "serving": wanted == models.current(),
        "data_withdrawn": lineage["data_version"] in withdrawn_data(workspace),
        **lineage,
    }


def model_history(workspace: Workspace) -> list[dict[str, Any]]:
    """All model versions, newest first; `data_withdrawn` is True if their data or ancestors of these were withdrawn."""
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
            "override": entry.lineage.get("override"),
        }
        for entry in models.log()
    ]


def withdrawn_data(workspace: Workspace, *, after: Sequence[Entry] = ()) -> set[str]:
    """Data versions that a rollback withdrew and no later one restored, and all versions derived from them.

    A model trained on one of them may stay the current model, but people should know.

    after: entries that are added to the history in thought, oldest first.
    """
    versions = DataVersions(workspace)
    known = versions.known_entries()
    gone = withdrawn([*reversed(versions.log()), *after], known)
    return {entry.id for entry in known if not gone.isdisjoint(descent(entry.id, known))}


def newest_standing(history: Sequence[dict[str, Any]]) -> int | None:
    """The newest model version in a `model_history` whose data were not withdrawn."""
    return next((entry["version"] for entry in history if not entry["data_withdrawn"]), None)


def advice(history: Sequence[dict[str, Any]]) -> str:
    """Advice to the user if the data of the current model were withdrawn, else ""; nothing is done automatically."""
    serving = next((entry for entry in history if entry["serving"]), None)
    if serving is None or not serving["data_withdrawn"]:
        return ""
    standing = newest_standing(history)
    earlier = f"`cleanshelf model rollback {standing}` returns to {standing}, the newest on valid data, and "
    return (
        f"model version {serving['version']} stays the current model, although its data were withdrawn: "
        f"{earlier if standing else ''}`cleanshelf retrain` makes a new one"
    )
