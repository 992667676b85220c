"""The application: its pages, what every answer carries, and the answers to errors."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from contract import CleanShelfError
from flows.pages import (
    deciding,
    deliveries,
    documentation,
    duplicates,
    endpoint,
    home,
    pictures,
    publishing,
    recognise,
    review,
    runs,
    versions,
)
from flows.pages.access import People
from flows.pages.guard import Guard
from flows.pages.map import router as map_router  # a module named map would hide the built-in function
from flows.pages.problem import ANSWERS, body_of, described
from flows.pages.site import Site, page

log = logging.getLogger("cleanshelf")
FOR_PROGRAMS = ("/api/", "/photos/")  # paths whose errors are JSON; elsewhere they are pages
ROUTERS = (
    home.router,
    documentation.router,
    pictures.router,
    deliveries.router,
    review.router,
    deciding.router,
    map_router,
    duplicates.router,
    recognise.router,
    versions.router,
    runs.router,
    publishing.router,
    endpoint.router,
)
DESCRIPTION = """\
What the pages use, for programs. Where a token is asked for, send `Authorization: Bearer TOKEN`. Each operation asks
for a role (`x-role`): look, decide or operate. An error is `{"error": {"kind": ..., "message": ...}}`."""


def create_app(site: Site, people: People) -> FastAPI:
    """The application for one workspace and the people who may use it."""
    app = FastAPI(
        title="CleanShelf",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # documentation has it, for those who may look
        responses=ANSWERS,
    )
    app.state.site, app.state.people = site, people
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    for kind in (CleanShelfError, OSError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, show_error)
    app.add_middleware(Guard, people=people, failed=show_error)
    return app


async def show_error(request: Request, error: Exception) -> Response:
    """An error as JSON for programs, else as a page with the way out."""
    status, _, _ = described(error)
    body, path = body_of(error), request.scope["path"]
    if status == 500:
        log.error("web: %r: %s", path, body.error.message, exc_info=error)
    if path.startswith(FOR_PROGRAMS):
        answer: Response = JSONResponse(body.model_dump(), status)
    else:
        answer = page(request, "error.html", status=status, message=body.error.message)
    answer.headers.update(getattr(error, "headers", None) or {})  # such as Allow
    return answer
