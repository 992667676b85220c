"""The site that all pages share: the workspace, the photos of data versions in memory, decisions, and templates."""

from __future__ import annotations

import contextlib
import functools
import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.templating import Jinja2Templates

from contract import CleanShelfError
from flows.data.versions import DataVersions
from flows.errors import Denied
from flows.pages.access import Person, caller
from flows.review.decisions import Decisions
from flows.review.filters import Selections
from flows.review.photos import Photos, read_photos
from flows.review.queue import Queue
from flows.review.suggestions import read_suggestions
from flows.workspace import Workspace

KEPT_VERSIONS = 2  # data versions in memory, about 0.15 GB each at 2.5 million photos
PAGES = (  # address, name
    ("/review", "Review"),
    ("/map", "Map"),
    ("/duplicates", "Duplicates"),
    ("/recognise", "Recognise"),
    ("/versions", "Versions"),
    ("/runs", "Runs"),
    ("/endpoint", "Endpoint"),
)
templates = Jinja2Templates(directory=Path(__file__).parent / "templates")


class Site:
    """One workspace as the pages see it. Routes run in several threads."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.versions = DataVersions(workspace)
        self.decisions = Decisions(workspace.state)
        self._lock, self._queue_lock = threading.Lock(), threading.Lock()
        self._photos: dict[str, Photos] = {}
        self._queue = functools.lru_cache(KEPT_VERSIONS)(self._read_queue)
        self.selections = Selections()

    def photos(self, version: str) -> Photos:
        """Photos of a data version, named as for `DataVersions.resolve`.

        Raises:
            UnknownVersion, PurgedVersion, CorruptObject
        """
        with self._lock:  # so that a second request for the same version waits instead of reading it too
            if version in self._photos:  # a full id needs no git, which would take longer than the answer
                return self._photos[version]
            resolved = self.versions.resolve(version)
            if resolved not in self._photos:
                self._photos[resolved] = self._read(resolved)
                while len(self._photos) > KEPT_VERSIONS:
                    del self._photos[next(iter(self._photos))]
            return self._photos[resolved]

    def queue(self, version: str) -> Queue:
        """Review queue of a data version, named as for `photos`; `refresh` takes over what was decided since."""
        resolved = self.photos(version).version
        with self._queue_lock:
            return self._queue(resolved)

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


TheSite = Annotated[Site, Depends(site_of)]  # parameter of routes


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page from one of the templates, which also knows `request`, `person`, `pages` and `workspace`."""
    site = site_of(request)
    common = {"person": _person(request), "pages": PAGES, "workspace": site.workspace.root.name}
    return templates.TemplateResponse(request, template, common | values, status_code=status)


def _person(request: Request) -> Person | None:
    try:
        return caller(request)
    except Denied:
        return None
