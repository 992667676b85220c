"""The page of runs: the retraining under way step by step, earlier ones, why a gate refused, and the start of another."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from flows.gate.reasons import Reason, reason_of
from flows.gate.verdict import FINAL, Finding
from flows.pages.access import Looks, Operates
from flows.pages.site import TheSite, page
from flows.report.refusal import ways_out
from flows.report.run_report import Report
from flows.report.steps import StepAccuracy
from flows.run.background import Started, last, start, stop
from flows.run.forecast import with_time_left
from flows.run.history import REPORT, RUNNING, RunState, folder_of, names, state_of
from flows.workspace import Workspace
from models.recipe.config import RECIPES, recipe_names

router = APIRouter()
SHOWN = 20  # runs of one answer
# The report may use its own styles and pictures; it runs no script, and is none of our pages.
REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Recipe:
    """A recipe that a retraining can be started from."""

    name: str
    about: str


@dataclass(frozen=True)
class Runs:
    """Runs, newest first. Only one under way has its steps and lines. `more` is the number of older ones."""

    runs: list[RunState]
    more: int
    started: Started | None  # the last retraining that was started from this page


@dataclass(frozen=True)
class RunDetails:
    """One run, and what its report says; empty lists if it has none. reasons: the findings in plain words."""

    run: RunState
    accuracy: list[StepAccuracy] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    ways_out: list[str] = field(default_factory=list)
    look_at: list[dict[str, Any]] = field(default_factory=list)
    has_report: bool = False


class Start(BaseModel):
    """The retraining to start: a recipe, overrides such as "train.epochs=3", and whether it may become the current model."""

    recipe: str = Field(max_length=100)
    overrides: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=100)
    promote: bool = True


class Stopped(BaseModel):
    """True if a retraining was running and has ended."""

    stopped: bool


@router.get("/runs", include_in_schema=False)
def runs_page(request: Request, site: TheSite, person: Looks) -> Response:
    """The runs, and the form that starts one."""
    found = runs(site.workspace, limit=SHOWN)
    unsaved = site.decisions.num_unsaved()
    return page(request, "runs.html", title="Runs", runs=asdict(found), recipes=recipes(), unsaved=unsaved)


@router.get("/runs/{run}", include_in_schema=False)
def run_page(request: Request, site: TheSite, person: Looks, run: str) -> Response:
    """One run."""
    found = details(site.workspace, run)
    return page(request, "run.html", title=f"Run {run}", offer=offer(found), **asdict(found))


@router.get("/runs/{run}/report", include_in_schema=False)
def report_page(site: TheSite, person: Looks, run: str) -> Response:
    """The report of a run: report.html, or the text of an earlier release."""
    folder, policy = folder_of(site.workspace, run), {"content-security-policy": REPORT_POLICY}
    if (folder / "report.html").is_file():
        return FileResponse(folder / "report.html", media_type="text/html", headers=policy)
    if (folder / "report.md").is_file():
        return FileResponse(folder / "report.md", media_type="text/plain; charset=utf-8", headers=policy)
    raise HTTPException(404, f"run {run} has no report; it ended before its graph was judged")


@router.get("/api/runs", tags=["runs"])
def list_runs(
    site: TheSite,
    person: Looks,
    limit: Annotated[int, Query(ge=1, le=200)] = SHOWN,
    skip: Annotated[int, Query(ge=0)] = 0,
) -> Runs:
    """The runs, newest first, and how far the one under way is."""
    return runs(site.workspace, limit=limit, skip=skip)


@router.get("/api/runs/{run}", tags=["runs"])
def run_details(site: TheSite, person: Looks, run: str) -> RunDetails:
    """One run: its steps, last lines, accuracy after each step, and the findings of the gates."""
    return details(site.workspace, run)


@router.get("/api/recipes", tags=["runs"])
def list_recipes(person: Looks) -> list[Recipe]:
    """The recipes that a retraining can be started from."""
    return recipes()


@router.post("/api/runs", tags=["runs"], status_code=202)
def start_run(site: TheSite, person: Operates, body: Start) -> Started:
    """Starts a retraining in the background; it goes on if this server ends."""
    return start(site.workspace, body.recipe, body.overrides, promote=body.promote, by=person.name)


@router.post("/api/runs/stop", tags=["runs"])
def stop_run(site: TheSite, person: Operates) -> Stopped:
    """Stops the retraining that was started from a page; the next one with its recipe goes on where it ended."""
    return Stopped(stopped=stop(site.workspace, by=person.name))


def runs(workspace: Workspace, *, limit: int, skip: int = 0) -> Runs:
    """Runs of the workspace, newest first."""
    found = names(workspace)
    states = [with_time_left(workspace, state_of(workspace, name)) for name in found[skip : skip + limit]]
    shown = [state if state.state == RUNNING else replace(state, steps=[], lines=[]) for state in states]
    return Runs(shown, more=max(len(found) - skip - limit, 0), started=last(workspace))


def details(workspace: Workspace, run: str) -> RunDetails:
    """One run with what its report says.

    Raises:
        UnknownRun: there is none of that name.
    """
    state, folder = with_time_left(workspace, state_of(workspace, run)), folder_of(workspace, run)
    has_report = any((folder / name).is_file() for name in ("report.html", "report.md"))
    report = _report(folder / REPORT)
    if report is None:
        return RunDetails(state, has_report=has_report)
    return RunDetails(
        state,
        accuracy=report.steps,
        findings=list(report.verdict.findings),
        reasons=[reason_of(finding) for finding in report.verdict.findings],
        ways_out=ways_out(report),
        look_at=report.look_at,
        has_report=has_report,
    )


def offer(found: RunDetails) -> str:
    """Way to use the model of a run: "again" after another check, "despite" its refusal, "final" if never; "" if unknown.

    A run that is under way, or whose model is in use, offers nothing.
    """
    refused = [finding.gate for finding in found.findings if not finding.passed]
    if not found.findings or found.run.state in (RUNNING, "published"):
        return ""
    if set(refused) & set(FINAL):
        return "final"
    return "despite" if found.ways_out else "again"


def recipes() -> list[Recipe]:
    """The recipes of this release, each with the first sentence about it."""
    return [Recipe(name, _about((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))) for name in recipe_names()]


def _about(text: str) -> str:
    """The first sentence of the comment at the head of a recipe."""
    lines = re.match(r"(?:#.*\n)*", text)
    words = " ".join((lines[0] if lines else "").replace("#", " ").split())
    sentence = re.match(r".+?[.](?=\s|$)", words)
    return sentence[0] if sentence else words


def _report(path: Path) -> Report | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Report.of(json.loads(path.read_bytes()))
    return None
