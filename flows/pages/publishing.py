"""Publication of the model of a run, and promotion of a registered one, from the pages of runs and versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from flows.errors import InputError
from flows.pages.access import Operates, as_author
from flows.pages.site import TheSite
from flows.pages.versions import SeenModel, refuse_if_changed
from flows.registry.versions import ModelVersions
from flows.run.background import RUN, Started, start_verb
from flows.run.history import folder_of

router = APIRouter()
MAX_REASON = 500  # characters


class Publication(BaseModel):
    """despite: the reason to publish the model even if a check refuses it; it is recorded with the caller's name."""

    despite: Annotated[str, Field(max_length=MAX_REASON)] | None = None


@router.post("/api/runs/{run}/publish", tags=["runs"], status_code=202)
def publish(site: TheSite, person: Operates, run: str, body: Publication) -> Started:
    """Judges the model of an earlier run again, and publishes it, in the background; `cleanshelf publish` does the same."""
    folder_of(site.workspace, run)
    reason = None if body.despite is None else " ".join(body.despite.split())
    if reason == "":
        raise InputError("say in a few words why this model should be used although a check refuses it")
    options = [] if reason is None else [f"--despite={reason}"]
    return start_verb(site.workspace, RUN, "publish", run, options, by=person.name, variables=as_author(person))


@router.post("/api/versions/models/{version}/promote", tags=["versions"], status_code=202)
def promote(site: TheSite, person: Operates, version: int, body: SeenModel) -> Started:
    """Makes a registered model version the current model, in the background; `cleanshelf promote` does the same."""
    models = ModelVersions(site.versions.ledger)
    models.lineage(version)
    refuse_if_changed(models.current(), body.in_place_of, what="current model")
    return start_verb(site.workspace, RUN, "promote", str(version), by=person.name, variables=as_author(person))
