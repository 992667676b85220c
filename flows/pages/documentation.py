"""The page that documents the JSON API, from the application's own OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from flows.pages.access import Looks
from flows.pages.site import page

router = APIRouter()


@router.get("/api", include_in_schema=False)
def documentation(request: Request, person: Looks) -> Response:
    """Every operation of the JSON API."""
    document = request.app.openapi()
    return page(request, "api.html", title="API", document=document, operations=list(operations(document)))


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Operations of an OpenAPI document, in its order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield {
                "method": method.upper(),
                "path": path,
                "says": operation.get("description") or operation.get("summary", ""),
                "parameters": [f"{each['name']} ({each['in']})" for each in operation.get("parameters", [])],
                "body": sorted(operation.get("requestBody", {}).get("content", {})),
            }
