"""The page of versions: the timeline of data and models, what changed between two data versions, and rollbacks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from flows.data.diff import ABSENT, CHANGES, Kind
from flows.data.versions import DataVersions
from flows.pages.access import Looks, Operates
from flows.pages.lanes import lanes
from flows.pages.site import Site, TheSite, page
from flows.pages.timeline import DataRow, Timeline, timeline
from flows.registry.history import model_lineage
from flows.registry.versions import ModelVersions
from flows.rollback import DataPlan, ModelPlan, plan_data_rollback, plan_model_rollback, rollback_data, rollback_model
from flows.workspace import Workspace

router = APIRouter()
SHOWN = 100  # items of the timeline, and kinds of change, on one page
PHOTOS = 60  # of one answer


@dataclass(frozen=True)
class Changes:
    """Changes from one data version to another, the most frequent first; `more` is the number of those left out."""

    old: str
    new: str
    totals: dict[str, int]
    unchanged: int
    changes: list[Kind]
    more: int


@dataclass(frozen=True)
class ChangedPhotos:
    """Ids of some photos of a change, and the data version that shows them."""

    version: str
    photos: list[str]
    total: int


@dataclass(frozen=True)
class RolledBack:
    """The version that was selected, or made the current model, and a sentence about it."""

    version: str
    says: str


class SeenData(BaseModel):
    """The version that the person saw as selected; a rollback is refused if it is another by now."""

    in_place_of: str | None = None


class SeenModel(BaseModel):
    """The version that the person saw as the current model; a rollback is refused if it is another by now."""

    in_place_of: int | None = None


@router.get("/versions", include_in_schema=False)
def versions_page(request: Request, site: TheSite, person: Looks, skip: Annotated[int, Query(ge=0)] = 0) -> Response:
    """The timeline, newest first."""
    found = timeline(site.workspace)
    rows = found.rows()
    drawings = lanes([(key, parent) for key, parent, _ in rows])
    items = [
        {"kind": _kind(row), "row": row, "lanes": drawing} for (_, _, row), drawing in zip(rows, drawings, strict=True)
    ]
    known = list(dict.fromkeys(row.version for row in found.data))[:SHOWN]
    return page(
        request,
        "versions.html",
        title="Versions",
        items=items[skip : skip + SHOWN],
        older=skip + SHOWN if len(items) > skip + SHOWN else None,
        timeline=found,
        known=known,
    )


@router.get("/versions/changes", include_in_schema=False)
def changes_page(request: Request, site: TheSite, person: Looks, old: str, new: str) -> Response:
    """The changes from one data version to another."""
    return page(request, "changes.html", title="What changed", found=changes(site, old, new), kinds=CHANGES)


@router.get("/versions/models/{version}", include_in_schema=False)
def model_page(request: Request, site: TheSite, person: Looks, version: int) -> Response:
    """One model version: data, recipe, accuracy, verdict and networks that it was made of."""
    lineage = model_lineage(site.workspace, version)
    models = ModelVersions(site.versions.ledger)
    return page(
        request,
        "model.html",
        title=f"Model version {version}",
        model=lineage,
        was_current=version in models.promoted(),
        current=models.current(),
    )


@router.get("/api/versions", tags=["versions"])
def list_versions(site: TheSite, person: Looks) -> Timeline:
    """All data versions and model versions, newest first."""
    return timeline(site.workspace)


@router.get("/api/versions/changes", tags=["versions"])
def list_changes(site: TheSite, person: Looks, old: str, new: str) -> Changes:
    """Numbers of photos that changed from one data version to another, and how."""
    return changes(site, old, new)


@router.get("/api/versions/changes/photos", tags=["versions"])
def changed_photos(
    site: TheSite,
    person: Looks,
    old: str,
    new: str,
    change: Annotated[int, Query(ge=0, description="Position among the changes of /api/versions/changes.")],
    skip: Annotated[int, Query(ge=0)] = 0,
) -> ChangedPhotos:
    """Some photos of one change."""
    found, ids = _compared(site.workspace, site.versions.resolve(old), site.versions.resolve(new))
    if change >= len(found.changes):
        raise HTTPException(404, f"there are {len(found.changes)} changes between these versions, and no {change}")
    photos = ids[change][skip : skip + PHOTOS].astype(str).tolist()
    is_gone = found.changes[change].to_outcome == ABSENT
    return ChangedPhotos(found.old if is_gone else found.new, photos, len(ids[change]))


@router.get("/api/versions/models/{version}", tags=["versions"])
def model_details(site: TheSite, person: Looks, version: int) -> dict[str, Any]:
    """The lineage of a model version: data, code, recipe, metrics and verdict."""
    return model_lineage(site.workspace, version)


@router.get("/api/versions/data/{version}/rollback", tags=["versions"])
def plan_data(site: TheSite, person: Looks, version: str) -> DataPlan:
    """Says what a rollback to this data version would do. Nothing is changed."""
    return plan_data_rollback(site.workspace, version)


@router.post("/api/versions/data/{version}/rollback", tags=["versions"])
def roll_back_data(site: TheSite, person: Operates, version: str, body: SeenData) -> RolledBack:
    """Selects this data version again, as a new entry of the history."""
    refuse_if_changed(site.versions.selected(), body.in_place_of, what="selected data version")
    entry = rollback_data(site.workspace, version)
    return RolledBack(entry.id, f"Data version {entry.id[:12]} is selected. The next retraining starts from it.")


@router.get("/api/versions/models/{version}/rollback", tags=["versions"])
def plan_model(site: TheSite, person: Looks, version: int) -> ModelPlan:
    """Says what a rollback to this model version would do, once its files are verified. Nothing is changed."""
    return plan_model_rollback(site.workspace, version)


@router.post("/api/versions/models/{version}/rollback", tags=["versions"])
def roll_back_model(site: TheSite, person: Operates, version: int, body: SeenModel) -> RolledBack:
    """Makes this model version the current model again; a running endpoint loses no request."""
    refuse_if_changed(ModelVersions(site.versions.ledger).current(), body.in_place_of, what="current model")
    done = rollback_model(site.workspace, version)
    return RolledBack(str(done), f"Model version {done} is the current model.")


def changes(site: Site, old: str, new: str) -> Changes:
    """The changes between two data versions, named as for `DataVersions.resolve`.

    Raises:
        UnknownVersion: there is no such version.
    """
    found, _ = _compared(site.workspace, site.versions.resolve(old), site.versions.resolve(new))
    return replace(found, changes=found.changes[:SHOWN], more=max(len(found.changes) - SHOWN, 0))


@functools.lru_cache(2)
def _compared(workspace: Workspace, old: str, new: str) -> tuple[Changes, list[NDArray[np.bytes_]]]:
    """All changes, and the ids of the photos of each: 40 MB for 2.5 million photos."""
    found = DataVersions(workspace).diff(old, new)
    parts = fields(Kind)
    kinds = [Kind(*(getattr(each, part.name) for part in parts)) for each in found.changes]
    totals = {name: getattr(found, name) for name in CHANGES}
    return Changes(old, new, totals, found.unchanged, kinds, 0), [np.array(each.ids, "S16") for each in found.changes]


def refuse_if_changed(now: str | int | None, seen: str | int | None, *, what: str) -> None:
    """Refuses what a person asks for who saw another version in place than there is now."""
    if seen is not None and seen != now:
        raise HTTPException(409, f"the {what} is {now or 'none'} by now, and was {seen} when you looked; look again")


def _kind(row: object) -> Literal["data", "model"]:
    return "data" if isinstance(row, DataRow) else "model"
