"""Documentation of the JSON API for people, programs and assistants, from the application's own OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts

from flows.pages.access import Looks, role_needed
from flows.pages.problem import PLACE, schemas
from flows.pages.site import page

router = APIRouter()


@router.get("/api", include_in_schema=False)
def documentation(request: Request, person: Looks) -> Response:
    """Every operation of the JSON API."""
    document = openapi(request.app)
    return page(request, "api.html", title="API", document=document, operations=list(operations(document)))


@router.get("/api/openapi.json", include_in_schema=False)
def openapi_json(request: Request, person: Looks) -> Response:
    """The OpenAPI document."""
    return JSONResponse(openapi(request.app))


@router.get("/llms.txt", include_in_schema=False)
def for_assistants(request: Request, person: Looks) -> Response:
    """The same for coding assistants, in the form of llmstxt.org."""
    document = openapi(request.app)
    answer = page(request, "llms.txt", document=document, operations=list(operations(document)))
    answer.headers["content-type"] = "text/plain; charset=utf-8"
    return answer


def openapi(app: FastAPI) -> dict[str, Any]:
    """OpenAPI document of the application; `x-role` of an operation is the role that it asks for."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas())
        for route in routes(app):
            for method in route.methods if route.include_in_schema else ():
                document["paths"][route.path][method.lower()]["x-role"] = role_needed(route)
        app.openapi_schema = document
    return app.openapi_schema


def routes(app: FastAPI) -> Iterator[Any]:
    """Routes of the application that FastAPI made, with the prefixes and dependencies of their routers."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            yield route


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Operations of an OpenAPI document, in its order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield {
                "id": operation["operationId"],
                "method": method.upper(),
                "path": path,
                "role": operation["x-role"],
                "says": operation.get("description") or operation["summary"],
                "parameters": operation.get("parameters", []),
                "body": list(_fields(document, operation.get("requestBody", {}).get("content", {}))),
            }


def _fields(document: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    """Content of a body: the fields of JSON or of a form, in brackets if they may be left out, or its media type."""
    for media, each in content.items():
        schema = each.get("schema", {})
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].removeprefix(PLACE)]
        names, needed = schema.get("properties", {}), schema.get("required", ())
        yield from [name if name in needed else f"[{name}]" for name in names] or [media]
