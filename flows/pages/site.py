"""The site that all pages share: the workspace, the photos of data versions in memory, decisions, and templates."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request, Response
from fastapi.templating import Jinja2Templates
from markupsafe import Markup, escape

from contract import CleanShelfError
from flows.data.versions import DataVersions
from flows.map.charts import Charts
from flows.map.maps import Maps
from flows.pages.access import People, Person, caller
from flows.review.decisions import Decisions
from flows.review.photos import Photos, read_photos
from flows.review.queue import Queue
from flows.review.selections import Selections
from flows.review.suggestions import read_suggestions
from flows.workspace import Workspace

T = TypeVar("T")
KEPT_VERSIONS = 2  # data versions in memory, about 0.15 GB each at 2.5 million photos
PAGES = (  # address, name
    ("/deliveries", "Deliveries"),
    ("/review", "Review"),
    ("/map", "Map"),
    ("/duplicates", "Duplicates"),
    ("/recognise", "Recognise"),
    ("/versions", "Versions"),
    ("/runs", "Runs"),
    ("/endpoint", "Endpoint"),
)
templates = Jinja2Templates(directory=Path(__file__).parent / "templates")
# `code` of a docstring, for pages
templates.env.filters["marked"] = lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


class _Kept(Generic[T]):
    """Results of reading the last KEPT_VERSIONS data versions; each is read once, even if several threads ask for it."""

    def __init__(self, read: Callable[[str], T]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._kept: dict[str, T] = {}

    def get(self, version: str) -> T | None:
        """Result for a full id, without the git that it takes to find out which version a name means; None if it is not kept."""
        return self._kept.get(version)

    def read(self, version: str) -> T:
        """Result for a full id, read now if it is not kept."""
        with self._lock:
            if (found := self._kept.get(version)) is None:
                found = self._kept[version] = self._read(version)
                while len(self._kept) > KEPT_VERSIONS:
                    del self._kept[next(iter(self._kept))]
            return found


class Site:
    """One workspace as the pages see it. Routes run in several threads.

    Args:
        deliveries: folders in which deliveries may lie that the pages take in; None if they may lie anywhere.
        keeps_photos: the last photos that the page Recognise sends to the endpoint are kept.
    """

    def __init__(
        self, workspace: Workspace, *, deliveries: Sequence[Path] | None = (), keeps_photos: bool = False
    ) -> None:
        self.workspace, self.deliveries, self.keeps_photos = workspace, deliveries, keeps_photos
        self.versions = DataVersions(workspace)
        self.decisions = Decisions(workspace.state)
        self._photos, self._queues = _Kept(self._read), _Kept(self._read_queue)
        self.selections, self.charts = Selections(), Charts(Maps(workspace))

    def photos(self, version: str) -> Photos:
        """Photos of a data version, named as for `DataVersions.resolve`.

        Raises:
            UnknownVersion, PurgedVersion, CorruptObject
        """
        return self._photos.get(version) or self._photos.read(self.versions.resolve(version))

    def queue(self, version: str) -> Queue:
        """Review queue of a data version, named as for `photos`; `refresh` takes over what was decided since."""
        return self._queues.get(version) or self._queues.read(self.photos(version).version)

    def warm_up(self) -> None:
        """Reads the selected version, so that the first page does not wait for it. A fault is shown by the page that meets it."""
        with contextlib.suppress(CleanShelfError, OSError):
            self.queue("selected")

    def _read(self, version: str) -> Photos:
        return read_photos(self.versions.materialise(version), version=version)

    def _read_queue(self, version: str) -> Queue:
        photos = self.photos(version)
        return Queue(photos, read_suggestions(photos, self.workspace.runs / "stages"), self.selections)


def site_of(request: Request) -> Site:
    """The site of a request."""
    site: Site = request.app.state.site
    return site


async def _the_site(request: Request) -> Site:
    return site_of(request)


TheSite = Annotated[Site, Depends(_the_site)]  # parameter of routes


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page from one of the templates, which also knows `request`, `person`, `pages`, `workspace` and `signs_in`."""
    site = site_of(request)
    people: People = request.app.state.people
    common = {
        "person": _person(request),
        "pages": PAGES,
        "workspace": site.workspace.root.name,
        "signs_in": not people.open_to_all,
    }
    return templates.TemplateResponse(request, template, common | values, status_code=status)


def _person(request: Request) -> Person | None:
    try:
        return caller(request)
    except CleanShelfError:  # refused; or the list of people is damaged, which the page then says
        return None
