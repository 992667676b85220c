"""The page of deliveries: photos that lie on the server are looked at first, and then taken in."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from flows.delivery.rows import check_source
from flows.errors import Denied, InputError
from flows.pages.access import Looks, Operates, as_author
from flows.pages.site import Site, TheSite, page
from flows.report.delivered import Sentence, sentences
from flows.run.background import DELIVERY, Started, document, last, start_verb

router = APIRouter()


@dataclass(frozen=True)
class Deliveries:
    """The last delivery that was looked at or taken in from this page, and where deliveries may lie.

    folders: those that deliveries may lie in. anywhere: they may lie in every folder of this machine.
    found: what the delivery holds, in words, once it has been read; data_version: the version that was made of it, or "".
    """

    folders: list[str]
    anywhere: bool
    started: Started | None
    found: list[Sentence]
    data_version: str


class Delivery(BaseModel):
    """A delivery: the path of its folder or table, and whether its photos have no labels. dry_run: only look at it."""

    path: str = Field(max_length=4000)
    unlabelled: bool = False
    dry_run: bool = True


@router.get("/deliveries", include_in_schema=False)
def deliveries_page(request: Request, site: TheSite, person: Looks) -> Response:
    """The form that takes in a delivery, and what became of the last one."""
    found = deliveries(site)
    return page(request, "deliveries.html", title="Deliveries", found=found, given=asdict(found))


@router.get("/api/deliveries", tags=["deliveries"])
def list_deliveries(site: TheSite, person: Looks) -> Deliveries:
    """Folders that deliveries may lie in, and what became of the last delivery of this page."""
    return deliveries(site)


@router.post("/api/deliveries", tags=["deliveries"], status_code=202)
def take_in(site: TheSite, person: Operates, body: Delivery) -> Started:
    """Looks at a delivery, or takes it in, in the background; `cleanshelf ingest` does the same."""
    source = source_of(site, body.path)
    check_source(source, unlabelled=body.unlabelled)
    options = ["--unlabelled"] * body.unlabelled + ["--dry-run"] * body.dry_run + ["--json"]
    return start_verb(
        site.workspace, DELIVERY, "ingest", str(source), options, by=person.name, variables=as_author(person)
    )


def deliveries(site: Site) -> Deliveries:
    """Folders that deliveries may lie in, and the last delivery."""
    folders = [str(folder) for folder in site.deliveries or ()]
    found, version, started = list[Sentence](), "", last(site.workspace, DELIVERY)
    if started and not started.is_alive and not started.has_failed:
        with suppress(KeyError, TypeError, AttributeError):  # of another release
            printed = document(site.workspace, DELIVERY)
            found, version = sentences(printed.get("report", printed)), printed.get("data_version", "")
    return Deliveries(folders, site.deliveries is None, started, found, version)


def source_of(site: Site, path: str) -> Path:
    """The folder or table of a delivery, symbolic links resolved.

    Raises:
        InputError: it is not a whole path.
        Denied: it does not lie in a folder that deliveries may lie in; whether it exists is not said.
    """
    if not path.strip().startswith("/") or not path.isprintable():
        raise InputError("give the whole path of the folder or table on the server, which starts with /")
    try:
        source = Path(path.strip()).resolve()
    except (OSError, RuntimeError):  # a loop of links
        source = Path("/")
    if site.deliveries is not None and not any(source.is_relative_to(folder.resolve()) for folder in site.deliveries):
        allowed = (
            ", ".join(map(str, site.deliveries)) or "none, until `cleanshelf web` is started with --deliveries DIR"
        )
        raise Denied(f"this is not in a folder that deliveries may lie in; those are: {allowed}")
    return source
