"""The first page, and signing in."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from flows.endpoint.server import access
from flows.errors import Denied, UnknownVersion
from flows.pages.access import COOKIE, Looks, People
from flows.pages.site import Site, TheSite, page
from flows.registry.versions import ModelVersions
from flows.review.filters import ISSUES, Filter
from flows.review.photos import Photos
from models.data.manifest import FLAGGED

router = APIRouter()
SHOWN = 6  # confusions
A_MONTH = 30 * 24 * 3600


@router.get("/", include_in_schema=False)
def home(request: Request, site: TheSite, person: Looks) -> Response:
    """The first page: data, labels in doubt, model and endpoint."""
    return page(request, "home.html", title="Overview", **overview(site))


@router.get("/api/overview", tags=["overview"])
def overview_of(site: TheSite, person: Looks) -> dict[str, Any]:
    """The selected data version, its label issues, the current model, and whether the endpoint runs."""
    return overview(site) | {"person": person.name, "role": person.role}


@router.get("/enter", include_in_schema=False)
def enter(request: Request) -> Response:
    """The page that the link of an invitation opens; the token is behind the #, which no server log sees."""
    return page(request, "enter.html", title="Sign in")


@router.post("/enter", include_in_schema=False)
def sign_in(request: Request, token: Annotated[str, Form()]) -> Response:
    """Keeps the token in a cookie that scripts cannot read and that other sites cannot send."""
    people: People = request.app.state.people
    if people.of_token(token.strip()) is None:
        raise Denied("this token is not valid (any more); ask for a new link")
    answer = RedirectResponse("/", status_code=303)
    answer.set_cookie(COOKIE, token.strip(), max_age=A_MONTH, httponly=True, secure=True, samesite="strict")
    return answer


@router.post("/leave", include_in_schema=False)
def sign_out() -> Response:
    """Forgets the token in this browser."""
    answer = RedirectResponse("/enter", status_code=303)
    answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
    return answer


def overview(site: Site) -> dict[str, Any]:
    """Facts of the first page; parts that are not there yet are None."""
    models = ModelVersions(site.versions.ledger)
    running = access(site.workspace)
    return {
        "data": _data(site),
        "model": models.current(),
        "endpoint": running.url if running else None,
        "pending": site.decisions.num_unsaved(),
    }


def _data(site: Site) -> dict[str, Any] | None:
    try:
        photos = site.photos("selected")
    except UnknownVersion:
        return None
    issues = np.flatnonzero(photos.decision.is_one_of(FLAGGED))
    return {
        "version": photos.version,
        "photos": len(photos),
        "kept": int(photos.kept.sum()),
        "classes": len(photos.classes) - (photos.label.code("") >= 0),  # photos without a label are of none
        "issues": len(issues),
        "confusions": _confusions(site, photos) if len(issues) else [],
    }


def _confusions(site: Site, photos: Photos) -> list[dict[str, Any]]:
    """The confusions with most label issues left, each with its worst photo; the worst photos of all often show no product."""
    queue = site.queue(photos.version)
    queue.refresh(site.decisions)
    found = []
    for each in [group for group in queue.confusions(Filter()) if group.given][:SHOWN]:
        rank = queue.page(Filter(given=each.given, suggested=each.suggested), "open", limit=1)
        photo = photos.name(queue.ranked[ISSUES].rows[rank[0]])
        found.append({"given": each.given, "suggested": each.suggested, "photos": each.left, "id": photo})
    return found
