"""Decisions in the review: on one photo, on many, on all that match a filter; taking them back; saving them as a version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from contract.labels import shown
from flows.errors import InputError, UnknownPhoto
from flows.feedback import save_decisions
from flows.pages.access import Decides, Operates, Person
from flows.pages.site import Site, TheSite
from flows.review.decisions import KEEP, TAKE
from flows.review.filters import Filter
from flows.review.queue import Queue, decisions_on

router = APIRouter(tags=["review"])
Kind = Literal["keep", "take", "relabel", "none", "skip"]
MOST = 250_000  # photos of one decision
NAMED = 100  # photos that an answer names
Photo = Annotated[str, Field(max_length=16)]


class Decide(BaseModel):
    """A decision on one photo or several. label: with `relabel`. seen: as it came with the photos."""

    version: str = Field(max_length=64)
    photos: list[Photo] = Field(min_length=1, max_length=10_000)
    kind: Kind
    label: str = Field("", max_length=2_000)
    seen: int = Field(ge=0, le=2**62)


class DecideMatching(BaseModel):
    """A decision on all open photos that match a filter, except some."""

    version: str = Field(max_length=64)
    filter: Filter
    kind: Kind
    label: str = Field("", max_length=2_000)
    left_out: list[Photo] = Field(default=[], max_length=10_000)


class DecideCleanest(BaseModel):
    """The decision that the labels of the open photos with the highest scores are right."""

    version: str = Field(max_length=64)
    filter: Filter
    count: int = Field(ge=1)


class Done(BaseModel):
    """Number of photos decided, and of those on which this could not be decided; seen: number of the last decision."""

    decided: int
    left_out: int
    seen: int


class Undone(BaseModel):
    """Number of decisions that were taken back, and the photos of the first of them."""

    count: int
    photos: list[str]


class Saved(BaseModel):
    """Numbers of photos as `cleanshelf feedback` reports them.

    left_out: photos that the selected version lacks, or whose label it lacks; they stay open.
    """

    data_version: str
    confirmed: int
    relabelled: int
    dropped: int
    near: int
    labelled: int
    left_out: int


@router.post("/api/review/decide")
def decide(site: TheSite, person: Decides, body: Decide) -> Done:
    """Decides about photos; refused if another person has decided about one of them since they were shown."""
    queue = site.queue(body.version)
    rows = queue.photos.rows(body.photos)
    if (rows < 0).any():
        wrong = body.photos[int((rows < 0).argmax())]
        raise UnknownPhoto(f"data version {queue.photos.version[:12]} has no photo {wrong}; reload the page")
    return _write(site, queue, rows.tolist(), person, kind=body.kind, label=body.label, seen=body.seen)


@router.post("/api/review/decide-matching")
def decide_matching(site: TheSite, person: Decides, body: DecideMatching) -> Done:
    """Decides about all open photos that match a filter, also those that are not on the screen."""
    queue = site.queue(body.version)
    seen = queue.refresh(site.decisions)
    except_for = set(queue.photos.rows(body.left_out).tolist())
    rows = [row for row in queue.matching(body.filter, "open").tolist() if row not in except_for]
    return _write(site, queue, rows, person, kind=body.kind, label=body.label, seen=seen)


@router.post("/api/review/decide-cleanest")
def decide_cleanest(site: TheSite, person: Decides, body: DecideCleanest) -> Done:
    """Decides that the labels of the open photos with the highest scores among those that match are right."""
    queue = site.queue(body.version)
    seen = queue.refresh(site.decisions)
    rows = queue.cleanest(body.filter, body.count).tolist()
    return _write(site, queue, rows, person, kind=KEEP, seen=seen)


@router.post("/api/review/undo")
def undo(site: TheSite, person: Decides) -> Undone:
    """Takes back the caller's last decision, or batch of decisions, unless it was saved."""
    undone = site.decisions.undo(person.name)
    return Undone(count=len(undone), photos=[each.photo for each in undone[:NAMED]])


@router.post("/api/review/save")
def save(site: TheSite, person: Operates) -> Saved:
    """Makes a data version with the decisions of everyone and selects it; photos that were skipped stay open."""
    done, left_out = save_decisions(site.workspace, site.decisions)
    assert done.data_version is not None
    site.queue(done.data_version)  # the next page does not wait for it
    return Saved(
        data_version=done.data_version,
        confirmed=done.confirmed,
        relabelled=done.relabelled,
        dropped=done.dropped,
        near=done.near,
        labelled=done.labelled,
        left_out=len(left_out),
    )


def _write(
    site: Site, queue: Queue, rows: Sequence[int], person: Person, *, kind: str, seen: int, label: str = ""
) -> Done:
    if len(rows) > MOST:
        raise InputError(f"{len(rows):,} photos match; narrow the filter to at most {MOST:,} at once")
    decisions = decisions_on(queue, rows, kind, who=person.name, label=label)
    if rows and not decisions:
        raise InputError(_reason(kind, label))
    last = site.decisions.add(decisions, seen=seen) if decisions else seen
    return Done(decided=len(decisions), left_out=len(rows) - len(decisions), seen=last)


def _reason(kind: str, label: str) -> str:
    if kind == TAKE:
        return "there is no suggestion to take; keep the label, or choose another one"
    return f"{shown(label[:80])} is not a product of this version; choose one from the list"
