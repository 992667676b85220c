"""Errors in words that a shop understands: their HTTP status, and the body that every answer with an error has."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from contract import CleanShelfError
from flows.errors import (
    Decided,
    Denied,
    DiskFull,
    EndpointMissing,
    UnknownPhoto,
    UnknownRun,
    UnknownVersion,
    WorkspaceBusy,
)
from flows.workspace.files import out_of_space

STATUS: dict[type[Exception], int] = {
    Denied: 403,
    UnknownVersion: 404,
    UnknownRun: 404,
    UnknownPhoto: 404,
    Decided: 409,
    WorkspaceBusy: 409,
    EndpointMissing: 503,
    DiskFull: 507,
}
FULL = (
    "the disk of the server is full, so this was not kept; everything before it was. Ask who operates the server to free some "
    "space, then do it again"
)
SAYS = {
    404: "there is nothing at this address; start from the overview",
    405: "this address cannot be called in this way; /api lists the ways",
}
PLACE = "#/components/schemas/"


class Problem(BaseModel):
    """An error: what is wrong, where, and the way out."""

    kind: str = Field(description="name of the error, as in docs/reference/messages.md, or of its HTTP status")
    message: str


class Refusal(BaseModel):
    """Body of every answer with an error."""

    error: Problem


ANSWERS: dict[int | str, dict[str, Any]] = {
    code: {"description": says, "content": {"application/json": {"schema": {"$ref": f"{PLACE}Refusal"}}}}
    for code, says in (("4XX", "refused, with the way out"), ("5XX", "something failed on the server"))
}


def schemas() -> dict[str, Any]:
    """Schemas that ANSWERS refers to, by name."""
    _, found = models_json_schema([(Refusal, "serialization")], ref_template=PLACE + "{model}")
    return dict(found["$defs"])


def described(error: Exception) -> tuple[int, str, str]:
    """HTTP status, kind and message of an error."""
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        says = SAYS.get(error.status_code, error.detail) if error.detail == phrase else error.detail
        return error.status_code, phrase.replace(" ", ""), says
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return 422, "BadRequest", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, CleanShelfError):
        known = next((status for kind, status in STATUS.items() if isinstance(error, kind)), None)
        return known or (400 if isinstance(error, ValueError) else 500), type(error).__name__, str(error)
    if out_of_space(error):
        return STATUS[DiskFull], DiskFull.__name__, FULL
    return 500, type(error).__name__, "something went wrong on the server; its log says what"


def body_of(error: Exception) -> Refusal:
    """Body of the answer with an error; half characters, which a JSON text may hold but an answer cannot, are replaced."""
    _, kind, message = described(error)
    return Refusal(error=Problem(kind=kind, message=message.encode(errors="replace").decode()))
