"""The map: photos in two dimensions, coloured, looked up under the pointer, and selected for review."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, field_validator

from flows.errors import InputError
from flows.map.chart import DECISIONS, Chart
from flows.map.charts import Charts
from flows.pages.access import Decides, Looks
from flows.pages.site import TheSite, page
from flows.review.photos import Photos
from flows.review.selections import Selection

router = APIRouter(tags=["map"])
MOST_CORNERS = 2_000


class Polygon(BaseModel):
    """An area of the map of a data version; corners are x and y in [-1, 1] or a little outside."""

    version: str = "selected"
    corners: list[tuple[float, float]] = Field(min_length=3, max_length=MOST_CORNERS)

    @field_validator("corners")
    @classmethod
    def finite(cls, corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """The corners, if all are finite numbers."""
        if not all(math.isfinite(value) for corner in corners for value in corner):
            raise ValueError("give finite numbers")
        return corners


class Which(BaseModel):
    """A data version."""

    version: str = "selected"


@router.get("/map", include_in_schema=False)
def map_page(request: Request, site: TheSite, person: Looks, version: str = "selected") -> Response:
    """The map of a data version."""
    photos = site.photos(version)
    return page(request, "map.html", title="Map", state=state_of(photos, site.charts), may_decide=person.may("decide"))


@router.get("/api/map")
def map_state(site: TheSite, person: Looks, version: str = "selected") -> dict[str, Any]:
    """State of the map of a data version: ready, making, missing, failed or impossible; `message` says more."""
    return state_of(site.photos(version), site.charts)


@router.post("/api/map")
def make_map(which: Which, site: TheSite, person: Decides) -> dict[str, Any]:
    """Starts to make the map of a data version, unless it is there; `state` says when it is."""
    photos = site.photos(which.version)
    if state_of(photos, site.charts)["state"] in ("missing", "failed"):
        site.charts.make(photos)
    return state_of(photos, site.charts)


@router.get("/api/map/points", response_class=Response)
def map_points(site: TheSite, person: Looks, version: str = "selected") -> Response:
    """All points as bytes: x and y of each as little-endian float32, then one byte per point for each colouring."""
    return Response(_ready(site.photos(version), site.charts).to_bytes(), media_type="application/octet-stream")


@router.get("/api/map/points/{point}")
def map_point(point: int, site: TheSite, person: Looks, version: str = "selected") -> dict[str, Any]:
    """Photo of a point, by its position in the points, with what is known about its label."""
    photos = site.photos(version)
    chart = _ready(photos, site.charts)
    if not 0 <= point < len(chart.row):
        raise InputError(f"point {point}: the map has points 0 to {len(chart.row) - 1}; reload the page")
    row = int(chart.row[point])
    score = float(photos.score[row])
    return {
        "photo": photos.name(row),
        "given": photos.given[row],
        "label": photos.label[row],
        "split": photos.split[row],
        "decision": photos.decision[row],
        "says": DECISIONS[photos.decision[row]],
        "score": None if math.isnan(score) else round(score, 4),
        "kept": bool(photos.kept[row]),
    }


@router.post("/api/map/selection")
def select(polygon: Polygon, site: TheSite, person: Looks) -> dict[str, Any]:
    """Selects the photos within an area; `selection` is a token by which the review page filters."""
    photos = site.photos(polygon.version)
    rows = _ready(photos, site.charts).inside(polygon.corners)
    token = site.selections.add(Selection(photos.version, photos.id[rows]))
    return {"version": photos.version, "selection": token, "photos": len(rows)}


def state_of(photos: Photos, charts: Charts) -> dict[str, Any]:
    """State of the map of a data version, as `GET /api/map` answers it."""
    state: dict[str, Any] = {"version": photos.version, "photos": len(photos), "message": ""}
    try:
        chart = charts.find(photos)
    except InputError as error:
        return state | {"state": "impossible", "message": str(error)}
    if chart is not None:
        legends = [{"name": each.name, "is_scale": each.is_scale, "values": each.legend} for each in chart.colourings]
        return state | {"state": "ready", "points": len(chart.row), "colourings": legends}
    making = charts.making(photos)
    if making and making.is_running:
        return state | {"state": "making", "message": making.line}
    if making and making.failure:
        return state | {"state": "failed", "message": making.failure}
    return state | {"state": "missing"}


def _ready(photos: Photos, charts: Charts) -> Chart:
    chart = charts.find(photos)
    if chart is None:
        raise InputError(f"there is no map of data version {photos.version[:12]} yet; make it on the page Map")
    return chart
