"""Rollbacks: of the data without touching the endpoint, and of the endpoint without touching the data.

These are plain functions, not flows: a rollback has to work while Prefect is down or a training is running. A permanent
Prefect server gets an event afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flows.data.diff import CHANGES
from flows.data.history import Entry
from flows.data.purge_record import Purged
from flows.data.versions import DataVersions
from flows.endpoint.server import access
from flows.errors import UnknownVersion
from flows.orchestrator.events import happened, post, selected
from flows.registry.history import model_history, withdrawn_data
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.settings import Settings
from flows.workspace import DATA_LOCK, Workspace
from flows.workspace.ledger import Ledger
from serving.server.control import Endpoint, load_on_start


@dataclass(frozen=True)
class DataPlan:
    """A rollback of the data before it is done.

    changes: numbers of photos whose label or outcome would change, by kind of change (flows.data.diff).
    without_purged: a version without purged photos would be made and selected instead.
    models: model versions, ascending, whose data would count as withdrawn, and do not now.
    restored: model versions whose data count as withdrawn now, and would not.
    """

    would_select: str
    in_place_of: str | None
    changes: dict[str, int]
    without_purged: bool
    models: list[int]
    restored: list[int]
    current_model: int | None


@dataclass(frozen=True)
class ModelPlan:
    """A rollback of the model before it is done; `metrics` and `metrics_now` are those of the two versions."""

    would_serve: int
    in_place_of: int | None
    data_version: str
    data_withdrawn: bool
    endpoint: str | None  # address of the endpoint that would switch; None: none is running
    metrics: dict[str, float | None]
    metrics_now: dict[str, float | None]


def plan_data_rollback(workspace: Workspace, version: str) -> DataPlan:
    """Plan of `rollback_data`, which changes nothing.

    Raises:
        LocalEdits, UnknownVersion, CorruptObject, MissingFromRemote
    """
    versions = DataVersions(workspace)
    versions.check_clean()
    target, selected = versions.resolve(version), versions.selected()
    found = versions.diff(selected or target, target)
    history, gone = model_history(workspace)[::-1], _withdrawn_by(workspace, versions, target)
    return DataPlan(
        would_select=target,
        in_place_of=selected,
        changes={name: getattr(found, name) for name in CHANGES},
        without_purged=_held_purged(versions, target),
        models=[each["version"] for each in history if each["data_version"] in gone and not each["data_withdrawn"]],
        restored=[each["version"] for each in history if each["data_withdrawn"] and each["data_version"] not in gone],
        current_model=next((each["version"] for each in history if each["serving"]), None),
    )


def _held_purged(versions: DataVersions, version: str) -> bool:
    with versions.store.objects() as objects:
        return Purged.read(versions.ledger).affects(objects.listing(version))


def _withdrawn_by(workspace: Workspace, versions: DataVersions, target: str) -> set[str]:
    """Data versions that would count as withdrawn after a rollback to `target`."""
    entry = next(each for each in versions.known_entries() if each.id == target)
    return withdrawn_data(workspace, after=[replace(entry, step="rollback")])


def plan_model_rollback(workspace: Workspace, version: int | None = None) -> ModelPlan:
    """Plan of `rollback_model`, made once the files of the version are verified; changes nothing.

    Raises:
        UnknownVersion: there is no such version, or it has never been the current model.
        CorruptVersion: its files have changed.
    """
    target = rollback_target(workspace, version)
    repository(workspace).verify(target)
    running = access(workspace)
    models = {each["version"]: each for each in model_history(workspace)}
    current = next((number for number, each in models.items() if each["serving"]), None)
    return ModelPlan(
        would_serve=target,
        in_place_of=current,
        data_version=models[target]["data_version"],
        data_withdrawn=models[target]["data_withdrawn"],
        endpoint=running.url if running else None,
        metrics=models[target]["metrics"],
        metrics_now=models[current]["metrics"] if current else {},
    )


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
