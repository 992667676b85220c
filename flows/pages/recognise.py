"""The page Recognise: photos of a browser to the endpoint, its answers, and photos that people name for the next training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile

from contract.labels import KnownLabels, shown
from flows.endpoint.nearest import Nearest, NearestPhotos
from flows.endpoint.recent import MOST as RECENT
from flows.endpoint.recent import Recent
from flows.endpoint.server import access
from flows.errors import InputError, UnknownVersion
from flows.pages import uploads
from flows.pages.access import Decides, Looks, Operates, Person
from flows.pages.site import Site, TheSite, page
from flows.recognise import Connection
from flows.review.decisions import Decision
from flows.review.inbox import Inbox, Named, product_named
from flows.review.photos import HEX
from flows.review.pictures import as_jpeg
from flows.review.queue import Queue, kind_of
from flows.workspace import Workspace
from pixels import BadPhoto, decode_shrunk
from serving import Recognition

log = logging.getLogger("cleanshelf")
router = APIRouter(tags=["recognise"])
SAMPLES = 4  # photos shown of each ranked product
SIDE_PX = 36  # as ingestion decodes a photo to find out whether it can be used
Sent = Annotated[UploadFile, File(description="A photo: JPEG, PNG, WEBP, GIF, BMP or TIFF.")]


@dataclass(frozen=True)
class NearestShown:
    """The nearest photos, and the data version that has them."""

    version: str
    found: Nearest


@router.get("/recognise", include_in_schema=False)
def recognise(request: Request, site: TheSite, person: Looks) -> Response:
    """The page."""
    limits = {"photo": uploads.MAX_PHOTO_BYTES, "most": uploads.MOST}
    return page(
        request,
        "recognise.html",
        title="Recognise",
        limits=limits,
        answers=access(site.workspace) is not None,
        kept=RECENT if site.keeps_photos else 0,
    )


@router.post("/api/recognise")
def answers(site: TheSite, person: Looks, photos: Annotated[list[UploadFile], File()]) -> dict[str, Any]:
    """Ranked products for each photo, in the order sent; a file that is not a photo gets an `error`."""
    uploads.check_count(photos)
    data = [uploads.read(photo) for photo in photos]
    faults = [uploads.refusal(each) for each in data]
    good = [each for each, fault in zip(data, faults, strict=True) if not fault]
    found = _connection(site.workspace).ask(good) if good else []
    if site.keeps_photos:
        _keep(site.workspace, good, found)
    shop, answered = _selected(site), iter(found)
    told = [{"error": fault} if fault else _told(next(answered), shop) for fault in faults]
    names = [{"name": uploads.name_of(photo)} for photo in photos]
    return {"answers": [name | each for name, each in zip(names, told, strict=True)]} | {
        "version": shop.photos.version if shop else None
    }


@router.post("/api/recognise/nearest")
def nearest(site: TheSite, person: Looks, photo: Sent) -> NearestShown:
    """Photos of the selected data version that look most like this one to the model, among those of the products it ranks.

    `similarity` is the cosine of the model's embeddings. The photos are compared by the endpoint, some of each product.
    """
    data, shop = uploads.read(photo), _selected(site)
    if fault := uploads.refusal(data):
        raise InputError(f"this photo cannot be compared: {fault}")
    if shop is None:
        raise InputError("there are no data to compare with yet; ingest a delivery first")
    return NearestShown(shop.photos.version, _search(site.workspace).find(data, shop.photos))


@router.post("/api/recognise/name")
def name_photo(site: TheSite, person: Decides, photo: Sent, label: Annotated[str, Form()]) -> dict[str, Any]:
    """Keeps a photo and the product that it shows; a photo of the selected data version becomes a decision instead."""
    data, shop, inbox = uploads.read(photo), _selected(site), Inbox(site.workspace.state)
    _check_photo(data)
    known = [shop.photos.products] if shop else []
    product = product_named(label, *known, KnownLabels(named.label for named in inbox.waiting()))
    named = Named.of(data, label=product, who=person.name, name=uploads.name_of(photo))
    row = int(shop.photos.rows([named.sha256[:HEX]])[0]) if shop else -1
    if shop and row >= 0:
        _decide(site, shop, row, person=person, label=product)
        return {"label": product, "kept_as": "decision", "waiting": inbox.count()}
    inbox.add(named, data)
    return {"label": product, "kept_as": "waiting", "waiting": inbox.count()}


@router.get("/api/recognise/waiting")
def waiting(site: TheSite, person: Looks) -> dict[str, Any]:
    """The photos that people named and that no data version has yet, newest first."""
    found = Inbox(site.workspace.state).waiting()
    return {"waiting": len(found), "photos": [vars(named) for named in found[: uploads.MOST]]}


@router.get("/api/recognise/waiting/{sha256}", response_class=Response)
def picture(site: TheSite, person: Looks, sha256: str) -> Response:
    """A waiting photo as a JPEG of at most 256 pixels on its longer side."""
    return Response(as_jpeg(Inbox(site.workspace.state).photo(sha256), 256), media_type="image/jpeg")


@router.delete("/api/recognise/waiting/{sha256}")
def take_back(site: TheSite, person: Decides, sha256: str) -> dict[str, Any]:
    """Takes a waiting photo out."""
    inbox = Inbox(site.workspace.state)
    inbox.remove(sha256)
    return {"waiting": inbox.count()}


@router.post("/api/recognise/waiting/save")
def save(site: TheSite, person: Operates) -> dict[str, Any]:
    """Makes a data version with the waiting photos. The same call again completes one that was interrupted."""
    inbox = Inbox(site.workspace.state)
    photos = inbox.waiting()
    if not photos:
        raise InputError("no photo waits to be added; name one first")
    done = _ingested(site.workspace, inbox, photos)
    inbox.clear(photos)
    return {"data_version": done.data_version, "report": done.report.in_words(), "waiting": inbox.count()}


def _ingested(workspace: Workspace, inbox: Inbox, photos: list[Named]) -> Any:
    from flows.orchestrator.isolation import prepare_prefect

    prepare_prefect(workspace.state)  # before the import below, which may import Prefect
    from flows.ingest import ingest

    return ingest(workspace, inbox.manifest(photos))


@functools.cache
def _connection(workspace: Workspace) -> Connection:
    return Connection(workspace)


@functools.cache
def _search(workspace: Workspace) -> NearestPhotos:
    return NearestPhotos(_connection(workspace).ask)


def _keep(workspace: Workspace, photos: Sequence[bytes], answers: Sequence[Recognition | BadPhoto]) -> None:
    """Keeps the photos that were recognised. People get their answers even if that fails."""
    recent = Recent(workspace.state)
    try:
        for photo, answer in zip(photos, answers, strict=True):
            if isinstance(answer, Recognition):
                recent.add(photo, answer)
    except (OSError, BadPhoto) as error:
        log.warning("web: a photo of the page Recognise was not kept: %s", error)


def _selected(site: Site) -> Queue | None:
    """The selected data version; None if there is none yet."""
    try:
        return site.queue("selected")
    except UnknownVersion:
        return None


def _told(answer: Recognition | BadPhoto, shop: Queue | None) -> dict[str, Any]:
    """An answer as JSON. Samples are ids of photos of the selected data version."""
    if isinstance(answer, BadPhoto):
        return {"error": f"it cannot be read ({answer.reason}); {uploads.SENDABLE}"}
    return {
        "error": None,
        "products": [
            {"label": label, "probability": round(p, 6), "samples": _samples(shop, label) if shop else []}
            for label, p in answer.ranked
        ],
        "known": answer.known,
        "score": round(answer.score, 6),
        "model_version": answer.model_version,
        "data_version": answer.data_version,
    }


def _samples(shop: Queue, label: str) -> list[str]:
    """Ids of good photos of a product; none if the version has no such product."""
    code = shop.photos.label.code(label)
    rows = shop.products.samples(code)[:SAMPLES] if code >= 0 else ()
    return [shop.photos.name(row) for row in rows]


def _check_photo(data: bytes) -> None:
    if fault := uploads.refusal(data):
        raise InputError(f"this photo cannot be kept: {fault}")
    try:
        decode_shrunk(data, SIDE_PX)
    except BadPhoto as error:
        raise InputError(f"this photo cannot be kept: {error.reason}; {uploads.SENDABLE}") from None


def _decide(site: Site, shop: Queue, row: int, *, person: Person, label: str) -> None:
    photos = shop.photos
    if not shop.products.has(label):
        raise InputError(
            f"this photo is in the data already, and {shown(label)} is a new product; name a new photo of it first, add it to "
            "the data, then name this one again"
        )
    kind = kind_of(photos, row, label)
    # This page shows no decisions, so those of other people must not be overwritten; saved ones are part of the data.
    photo = photos.name(row)
    seen = max((each["seq"] for each in site.decisions.of(photo) if each["saved"]), default=0)
    site.decisions.add([Decision(photo, kind, label, person.name, photos.version)], seen=seen)
