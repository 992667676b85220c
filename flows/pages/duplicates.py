"""The page Duplicates: near-duplicates across the test split, and photos that came with several labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from contract.labels import shown
from flows.errors import InputError, UnknownVersion
from flows.pages.access import Decides, Looks
from flows.pages.site import Site, TheSite, page
from flows.review.decisions import Decision
from flows.review.pairs import CONFLICT, Conflicts, Pairs, conflicts, near_pairs
from flows.review.photos import Photos
from flows.review.queue import Queue, kind_of

router = APIRouter(tags=["duplicates"])
ON_A_PAGE = 24
KINDS = {
    "near": "All near-duplicates",
    "near-test": "Near-duplicates left out of training",
    "near-train": "Near-duplicates left out of testing",
    "near-kept": "Near-duplicates that stay",
    "conflict": "All photos with several labels",
    "conflict-open": "Photos with several labels, not settled",
    "conflict-settled": "Photos with several labels, settled",
}
Kind = Literal["near", "near-test", "near-train", "near-kept", "conflict", "conflict-open", "conflict-settled"]
WON = {
    "near-test": "The test photo won: this photo shows the same picture and is left out of training.",
    "near-train": "The training photo won: this photo shows the same picture and is left out of testing.",
    "": "Both stay: without them the product would have lost most of its photos.",
}
Page = Annotated[int, Query(ge=1, le=10**9)]
Product = Annotated[str, Query(max_length=500)]


class Settlement(BaseModel):
    """The label that a photo with several labels gets. seen: number of the last decision that the person has seen."""

    photo: str = Field(max_length=16)
    label: str = Field(max_length=500)
    version: str = Field("selected", max_length=80)
    seen: int = Field(ge=0, le=2**62)


@router.get("/duplicates", include_in_schema=False)
def duplicates(
    request: Request,
    site: TheSite,
    person: Looks,
    kind: Kind = "near",
    product: Product = "",
    number: Annotated[int, Query(alias="page", ge=1, le=10**9)] = 1,
) -> Response:
    """The page."""
    try:
        found = listed(site, "selected", kind=kind, product=product, number=number)
    except UnknownVersion:
        found = None
    return page(request, "duplicates.html", title="Duplicates", kinds=KINDS, found=found)


@router.get("/api/duplicates")
def pairs_and_conflicts(
    site: TheSite, person: Looks, kind: Kind = "near", product: Product = "", page: Page = 1, version: str = "selected"
) -> dict[str, Any]:
    """One page of near-duplicates, or of photos with several labels, of a kind and a product."""
    return listed(site, version, kind=kind, product=product, number=page)


@router.post("/api/duplicates/settle")
def settle(site: TheSite, person: Decides, settlement: Settlement) -> dict[str, Any]:
    """Settles a conflict of labels by choosing one of them; it counts once the decisions are saved as a version."""
    queue = site.queue(settlement.version)
    photos = queue.photos
    row, found = photos.row(settlement.photo), conflicts(photos)
    position = found.position(row)
    claimed = [claim["label"] for claim in found.labels(position)] if position >= 0 else []
    if settlement.label not in claimed:
        raise InputError(
            f"photo {settlement.photo} did not come with the label {shown(settlement.label)}; reload the page"
        )
    if not queue.products.has(settlement.label):
        raise InputError(f"no training photo shows {shown(settlement.label)} yet; add photos of it to the data first")
    kind = kind_of(photos, row, settlement.label)
    decision = Decision(settlement.photo, kind, settlement.label, person.name, photos.version)
    return {"seen": site.decisions.add([decision], seen=settlement.seen), "label": settlement.label, "who": person.name}


def listed(site: Site, version: str, *, kind: Kind, product: str, number: int) -> dict[str, Any]:
    """Page `number` of what there is of a kind, and how much there is of it.

    Raises:
        UnknownVersion: there is no such data version.
        InputError: there is no product of that name.
    """
    queue, seen = site.queue(version), site.decisions.state()[0]
    label = queue.photos.products.spelt(product) if product else ""
    find = _pairs_on_page if kind.startswith("near") else _conflicts_on_page
    total, items = find(site, queue, kind=kind, label=label, number=number)
    return {
        "version": queue.photos.version,
        "kind": kind,
        "product": label,
        "page": number,
        "pages": -(-total // ON_A_PAGE),
        "total": total,
        "seen": seen,
        "items": items,
    }


def _pairs_on_page(site: Site, queue: Queue, *, kind: str, label: str, number: int) -> tuple[int, list[dict[str, Any]]]:
    photos, code = queue.photos, queue.photos.label.code(label) if label else None
    if code == -1:
        raise _unknown(label)
    pairs = _chosen_pairs(photos, near_pairs(photos), kind=kind, code=code)
    first = (number - 1) * ON_A_PAGE
    return len(pairs), [_pair(photos, pairs, at) for at in range(first, min(first + ON_A_PAGE, len(pairs)))]


def _conflicts_on_page(
    site: Site, queue: Queue, *, kind: str, label: str, number: int
) -> tuple[int, list[dict[str, Any]]]:
    found = conflicts(queue.photos)
    chosen = _chosen_conflicts(queue.photos, found, kind=kind)
    if label:
        claimed = found.with_label(label)
        if queue.photos.label.code(label) < 0 and not claimed.any():
            raise _unknown(label)
        chosen &= claimed
    places = np.flatnonzero(chosen)
    on_page = places[(number - 1) * ON_A_PAGE : number * ON_A_PAGE]
    return len(places), [_conflict(site, queue, found, int(place)) for place in on_page]


def _unknown(label: str) -> InputError:
    return InputError(f"no photo has the product {shown(label)}; choose one in the list, or leave the field empty")


def _chosen_pairs(photos: Photos, pairs: Pairs, *, kind: str, code: int | None) -> Pairs:
    if kind != "near":
        wanted = photos.decision.code(kind.replace("near-kept", ""))
        is_near = photos.decision.is_one_of(("near-test", "near-train"))[pairs.row]
        pairs = pairs.those(~is_near if kind == "near-kept" else photos.decision.codes[pairs.row] == wanted)
    if code is None:
        return pairs
    either = [photos.given.codes[rows] == code for rows in (pairs.row, pairs.near)]
    either += [photos.label.codes[rows] == code for rows in (pairs.row, pairs.near)]
    has_partner = pairs.near >= 0
    return pairs.those(either[0] | either[2] | (has_partner & (either[1] | either[3])))


def _chosen_conflicts(photos: Photos, found: Conflicts, *, kind: str) -> NDArray[np.bool_]:
    is_open: NDArray[np.bool_] = photos.decision.is_one_of([CONFLICT])[found.row]
    return {"conflict": np.ones(len(found), bool), "conflict-open": is_open, "conflict-settled": ~is_open}[kind]


def _pair(photos: Photos, pairs: Pairs, at: int) -> dict[str, Any]:
    row, near = int(pairs.row[at]), int(pairs.near[at])
    decision = photos.decision[row]
    return {
        "photo": facts(photos, row),
        "partner": facts(photos, near) if near >= 0 else None,
        "distance": round(float(pairs.distance[at]), 2) if near >= 0 else None,
        "difference": round(float(pairs.difference[at]), 3) if near >= 0 else None,
        "decision": decision,
        "outcome": WON.get(decision, WON[""]),
    }


def _conflict(site: Site, queue: Queue, found: Conflicts, position: int) -> dict[str, Any]:
    photos, row, claims = queue.photos, int(found.row[position]), found.labels(position)
    labels = dict.fromkeys(claim["label"] for claim in claims)
    return {
        "photo": facts(photos, row),
        "choices": [
            {"label": label, "by": _claimants(claims, label), "known": queue.products.has(label)} for label in labels
        ],
        "open": photos.decision[row] == CONFLICT,
        "decided": _decided(site, photos.name(row)),
    }


def facts(photos: Photos, row: int) -> dict[str, Any]:
    """A photo for people: id, labels, split, supplier, and its part in training and testing."""
    return {
        "id": photos.name(row),
        "given_label": photos.given[row],
        "label": photos.label[row],
        "split": photos.split[row],
        "source": photos.source[row],
        "kept": bool(photos.kept[row]),
    }


def _claimants(claims: list[dict[str, str]], label: str) -> list[str]:
    return sorted({claim["source"] or claim["path"] for claim in claims if claim["label"] == label})


def _decided(site: Site, photo: str) -> Mapping[str, Any] | None:
    """The last decision of a person that was not taken back."""
    for decision in site.decisions.of(photo):
        if not decision["undone"]:
            return {name: decision[name] for name in ("kind", "label", "who", "at", "saved")}
    return None
