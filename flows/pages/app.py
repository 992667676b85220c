"""The application: its pages, what every answer carries, and errors in words that a shop understands."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from contract import CleanShelfError
from flows.errors import Decided, Denied, EndpointMissing, UnknownPhoto, UnknownRun, UnknownVersion, WorkspaceBusy
from flows.pages import deciding, documentation, duplicates, endpoint, home, pictures, recognise, review, runs, versions
from flows.pages.access import People
from flows.pages.guard import Guard
from flows.pages.map import router as map_router  # a module named map would hide the built-in function
from flows.pages.site import Site, page

log = logging.getLogger("cleanshelf")
STATUS: dict[type[Exception], int] = {
    Denied: 403,
    UnknownVersion: 404,
    UnknownRun: 404,
    UnknownPhoto: 404,
    Decided: 409,
    WorkspaceBusy: 409,
    EndpointMissing: 503,
}
OPENAPI = "/api/openapi.json"
ROUTERS = (
    home.router,
    documentation.router,
    pictures.router,
    review.router,
    deciding.router,
    versions.router,
    runs.router,
    endpoint.router,
    map_router,
    recognise.router,
    duplicates.router,
)
DESCRIPTION = """\
What the pages use, for programs. Off the loopback, send `Authorization: Bearer TOKEN`. An error is
`{"error": {"kind": ..., "message": ...}}`."""


def create_app(site: Site, people: People) -> FastAPI:
    """The application for one workspace and the people who may use it."""
    app = FastAPI(title="CleanShelf", description=DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=OPENAPI)
    app.state.site, app.state.people = site, people
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    for kind in (CleanShelfError, OSError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, show_error)
    app.add_middleware(Guard, people=people)
    return app


async def show_error(request: Request, error: Exception) -> Response:
    """An error as JSON below /api, else as a page with the way out."""
    status, kind, message = described(error)
    if status == 500:
        log.error("web: %s %s", request.url.path, message, exc_info=error)
    if request.url.path.startswith("/api"):
        return JSONResponse({"error": {"kind": kind, "message": message}}, status)
    return page(request, "error.html", status=status, message=message)


def described(error: Exception) -> tuple[int, str, str]:
    """HTTP status, kind and message of an error."""
    if isinstance(error, HTTPException):
        return error.status_code, "HTTPException", str(error.detail)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return 422, "BadRequest", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, CleanShelfError):
        known = next((status for kind, status in STATUS.items() if isinstance(error, kind)), None)
        return known or (400 if isinstance(error, ValueError) else 500), type(error).__name__, str(error)
    return 500, type(error).__name__, "something went wrong on the server; its log says what"
