"""The page of the review, and what it shows: the queue, evidence of photos, progress, and search for classes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from flows.errors import InputError, UnknownVersion
from flows.pages.access import DECIDE, OPERATE, Looks, Person
from flows.pages.site import Site, TheSite, page
from flows.review.evidence import Evidence, evidence
from flows.review.filters import ISSUES, Filter, Scope
from flows.review.neighbours import Neighbour, nearest
from flows.review.photos import as_number, is_id
from flows.review.queue import STATES, Group, Progress, Queue, State
from flows.review.selections import Selection
from models.data.manifest import DECISIONS

router = APIRouter(tags=["review"])
AT_ONCE = 20  # photos of one answer
MOST_SOURCES = 200  # suppliers that the page lists
LONGEST_LIST = 2_500_000  # photos of one selection

Version = Annotated[str, Query(max_length=64, description="data version: `selected`, or the first digits of its id")]


class Page(Filter, frozen=True):
    """A filter, and which photos of those that match it."""

    version: str = Field("selected", max_length=64)
    state: State = "open"
    after: int = Field(-1, description="rank behind which the photos start")
    before: int | None = Field(None, description="instead of `after`: rank before which the photos end")
    limit: int = Field(AT_ONCE, ge=1, le=100)

    @property
    def filter(self) -> Filter:
        """The filter alone."""
        return Filter(**self.model_dump(include=set(Filter.model_fields)))


class Best(Page, frozen=True):
    """A filter, and the number of its photos with the highest scores."""

    count: int = Field(1, ge=1)


class Photos(BaseModel):
    """Photos of the queue in its order. seen: number of the last decision, to be sent back with a decision."""

    version: str
    seen: int
    photos: list[Evidence]


class HowFar(BaseModel):
    """Progress of the photos that match a filter, and of all in its scope; unsaved: decisions that are in no version yet."""

    here: Progress
    all: Progress
    unsaved: int
    classes: list[Group]
    confusions: list[Group]


class Found(BaseModel):
    """A class, with how likely the networks find it for the photo, and a photo of it."""

    label: str
    probability: float | None
    sample: str | None


class Cleanest(BaseModel):
    """Photos with the highest scores. lowest: score of the last; last: the ones with the lowest scores among them."""

    count: int
    lowest: float | None
    last: list[str]


class Marked(BaseModel):
    """Photos that were chosen by other means than the filter."""

    version: str = Field(default="selected", max_length=64)
    photos: list[Annotated[str, Field(max_length=16)]] = Field(max_length=LONGEST_LIST)


class Token(BaseModel):
    """Token of a selection, for the filter, and how many photos it has."""

    selection: str
    count: int


Wanted = Annotated[Page, Query()]


@router.get("/review", include_in_schema=False)
def review(request: Request, site: TheSite, person: Looks, wanted: Wanted) -> Response:
    """The review page, with the first photos already in it."""
    try:
        queue = site.queue(wanted.version)
    except UnknownVersion:
        if wanted.version != "selected":
            raise
        return page(request, "review.html", title="Review", start=None)
    start = _start(site, queue, wanted, person) | {"isLocal": request.app.state.people.open_to_all}
    sources = sorted(value for value in queue.photos.source.values if value)
    return page(
        request, "review.html", title="Review", start=start, wanted=wanted, states=STATES, splits=queue.photos.split.values,
        sources=sources[:MOST_SOURCES], decided=[each for each in DECISIONS if each],
        missing=queue.suggestions.missing, may_decide=person.may(DECIDE), may_operate=person.may(OPERATE),
    )  # fmt: skip


def _start(site: Site, queue: Queue, wanted: Page, person: Person) -> dict[str, Any]:
    filled = {name: value for name, value in wanted.model_dump().items() if value not in ("", None)}
    return {
        "version": queue.photos.version,
        "wanted": {name: value for name, value in filled.items() if name not in ("after", "before", "limit")},
        "me": person.name,
        "mayDecide": person.may(DECIDE),
        "page": photos_of(site, queue, wanted).model_dump(),
        "progress": dataclasses.asdict(queue.progress(wanted.filter)) | {"unsaved": queue.num_unsaved},
    }


@router.get("/api/review/queue")
def photos_to_review(site: TheSite, person: Looks, wanted: Wanted) -> Photos:
    """The next photos to review with all that is shown beside them, worst score first."""
    return photos_of(site, site.queue(wanted.version), wanted)


def photos_of(site: Site, queue: Queue, wanted: Page) -> Photos:
    """One page of the queue."""
    seen = queue.refresh(site.decisions)
    if wanted.before is None:
        ranks = queue.page(wanted.filter, wanted.state, after=max(-1, wanted.after), limit=wanted.limit)
    else:
        ranks = queue.page_before(wanted.filter, wanted.state, before=max(0, wanted.before), limit=wanted.limit)
    rows = queue.ranked[wanted.scope].rows[ranks]
    found = evidence(queue, site.decisions, rows, scope=wanted.scope, seen=seen)
    return Photos(version=queue.photos.version, seen=seen, photos=found)


@router.get("/api/review/photos/{photo}")
def one_photo(site: TheSite, person: Looks, photo: str, version: Version = "selected", scope: Scope = ISSUES) -> Photos:
    """One photo as the queue shows it."""
    queue = site.queue(version)
    seen = queue.refresh(site.decisions)
    found = evidence(queue, site.decisions, [queue.photos.row(photo)], scope=scope, seen=seen)
    return Photos(version=queue.photos.version, seen=seen, photos=found)


@router.get("/api/review/photos/{photo}/neighbours")
def neighbours(site: TheSite, person: Looks, photo: str, version: Version = "selected") -> list[Neighbour]:
    """The most similar photos, among those of likely classes and a sample of all; empty if cleaning did not compare photos."""
    queue = site.queue(version)
    return nearest(queue.photos, queue.suggestions, queue.photos.row(photo))


@router.get("/api/review/progress")
def progress(site: TheSite, person: Looks, wanted: Wanted) -> HowFar:
    """Numbers of photos that are decided and left, by class and by confusion."""
    queue = site.queue(wanted.version)
    queue.refresh(site.decisions)
    return HowFar(
        here=queue.progress(wanted.filter),
        all=queue.progress(Filter(scope=wanted.scope)),
        unsaved=queue.num_unsaved,
        classes=queue.classes(wanted.filter),
        confusions=queue.confusions(wanted.filter),
    )


@router.get("/api/review/classes")
def search(
    site: TheSite,
    person: Looks,
    q: Annotated[str, Query(max_length=200)] = "",
    photo: str = "",
    version: Version = "selected",
) -> list[Found]:
    """Classes whose name has `q` in it, without regard to case and accents; the likeliest of the photo come first."""
    queue = site.queue(version)
    found, row = queue.suggestions, queue.photos.row(photo) if photo else -1
    likely = found.top[row] if row >= 0 else np.zeros(0, np.int32)
    probability = dict(zip(likely.tolist(), found.probs[row].tolist(), strict=True)) if row >= 0 else {}
    return [
        Found(label=queue.photos.classes[code], probability=probability.get(code), sample=queue.sample(code))
        for code in queue.products.search(q, likely=likely)
    ]


@router.get("/api/review/cleanest")
def cleanest(site: TheSite, person: Looks, wanted: Annotated[Best, Query()]) -> Cleanest:
    """The open photos with the highest scores among those that match: how many there are, and the last of them."""
    queue = site.queue(wanted.version)
    queue.refresh(site.decisions)
    rows = queue.cleanest(wanted.filter, wanted.count)
    names = [queue.photos.name(int(row)) for row in rows[-AT_ONCE:]]
    return Cleanest(count=len(rows), lowest=float(queue.photos.score[rows[-1]]) if len(rows) else None, last=names)


@router.post("/api/review/selections")
def keep_selection(site: TheSite, person: Looks, marked: Marked) -> Token:
    """Keeps a set of photos under a token for the filter, while the server runs."""
    if wrong := next((photo for photo in marked.photos if not is_id(photo)), None):
        raise InputError(f"{wrong!r} is not the id of a photo (16 hex digits)")
    ids = np.unique(np.array([as_number(photo) for photo in marked.photos], np.uint64))
    return Token(
        selection=site.selections.add(Selection(site.queue(marked.version).photos.version, ids)), count=len(ids)
    )
