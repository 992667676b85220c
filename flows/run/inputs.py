"""The inputs of a retraining, and a search for an earlier run with the same inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.data.history import uncleaned
from flows.data.pointer import REF
from flows.data.versions import DataVersions
from flows.registry.versions import ModelVersions
from flows.run.run import deciding_hash
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.recipe.config import Recipe, digest, training_inputs

DECIDING = ("data_version", "config", "code")


def version_to_train_on(versions: DataVersions, recipe: Recipe) -> str:
    """The selected data version, or the version before its cleaning if the recipe cleans.

    Raises:
        UnknownVersion: there is no data version yet.
    """
    selected = versions.resolve("selected")
    return uncleaned(selected, versions.known_entries()) if recipe.clean.rounds else selected


def inputs(workspace: Workspace, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides how a retraining started now would end.

    data_version: the version that it starts from.
    history: the tip of the data's history, by which later deliveries are known.
    config: digest of the recipe and of the files that it names.
    code: hash of all source that decides.
    serving: the current model version, with which the gate compares; None if there is none.
    """
    trainings = [training_inputs(recipe.of(member)) for member in range(len(recipe.members))]
    versions = DataVersions(workspace)
    with versions.store.locked():  # so that the version and the tip belong together
        start, tip = version_to_train_on(versions, recipe), versions.ledger.tip(REF)
    return {
        "data_version": start,
        "history": tip,
        "config": digest(recipe, *(part for training in trainings for part in training)),
        "code": deciding_hash(),
        "serving": ModelVersions(Ledger(workspace.root)).current(),
    }


def ended_before(workspace: Workspace, now: dict[str, Any]) -> str:
    """The reason why a retraining with these inputs would change nothing, with the run that shows it; "" if there is none.

    A published model is not published again even if it no longer serves, because a rollback is meant to last. A refused
    model may pass once another model is current.
    """
    for folder in sorted(path.parent for path in workspace.runs.glob("*/run.json")):
        try:
            before = _read(folder / "inputs.json")  # first, as reports are long and runs may be thousands
            same = all(before[name] == now[name] for name in DECIDING)
            if same and (why := _ended(_read(folder / "run.json"), before, now)):
                return f"data version {now['data_version'][:12]}, recipe and code are those of run {folder.name}, {why}"
        except (FileNotFoundError, ValueError, KeyError):
            continue  # the run was killed before it wrote them, or they are damaged: it proves nothing
    return ""


def _ended(run: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> str:
    if run["model_version"]:
        return f"which published model version {run['model_version']}"
    if not run["verdict"]["passed"] and before["serving"] == now["serving"]:
        return f"which the gate refused: {'; '.join(run['verdict']['reasons'])}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
