"""What a deployment runs: a retraining, unless one of the very same inputs has ended. Each run leaves a line in a file.

The lines are what `cleanshelf schedule --status` shows; they need no server.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, runtime
from prefect.client.schemas.objects import StateType
from prefect.states import State

from contract import CleanShelfError
from flows.errors import GateRefused, WorkspaceBusy
from flows.report.terminal import show_progress
from flows.retrain import retrain
from flows.run.inputs import ended_before, inputs
from flows.workspace import Workspace
from models.recipe.config import Recipe, load_recipe
from serving.server.process import birth

log = logging.getLogger("cleanshelf")
PATIENCE_S = 3600.0  # for whoever holds the workspace
RETRY_S = 10.0
RUNNING, CRASHED = "running", "crashed"
FAILED = ("refused", "failed")


@dataclass(frozen=True)
class ScheduledRun:
    """A scheduled run: when it began (ISO 8601), its end (running, published, unchanged, refused, failed, crashed), and why."""

    at: str
    outcome: str
    why: str
    flow_run: str
    process: str  # pid, birth and machine


@flow(name="scheduled")
def scheduled(workspace: str, recipe: str = "robust", overrides: list[str] | None = None) -> State[None]:
    """A retraining if anything changed since the last one; ends as Published, Unchanged, Refused or Failed."""
    show_progress()
    place = Workspace.find(Path(workspace))
    fired = ScheduledRun(
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", RUNNING, "", str(runtime.flow_run.id), _process(os.getpid())
    )
    note(place, fired)
    try:
        outcome, why = retrain_if_changed(place, load_recipe(recipe, overrides=overrides or []))
    except GateRefused as error:
        outcome, why = "refused", str(error)
    except (CleanShelfError, OSError) as error:
        outcome, why = "failed", str(error)
    note(place, replace(fired, outcome=outcome, why=why))
    log.info("scheduled run %s: %s", outcome, why)
    kind = StateType.FAILED if outcome in FAILED else StateType.COMPLETED
    return State(type=kind, name=outcome.capitalize(), message=why)


def retrain_if_changed(workspace: Workspace, recipe: Recipe) -> tuple[str, str]:
    """How it ended and why; where somebody is at work in the workspace, after that."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if why := ended_before(workspace, inputs(workspace, recipe)):
            return "unchanged", why
        try:
            report = retrain(workspace, recipe)
        except WorkspaceBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
        else:
            return "published", f"model version {report.model_version}, run {report.run}"


def note(workspace: Workspace, fired: ScheduledRun) -> None:
    """Adds a line of its own, also after one that a kill left half-written; the last one of a flow run counts."""
    with _file(workspace).open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(asdict(fired))}\n")


def history(workspace: Workspace) -> list[ScheduledRun]:
    """The scheduled runs, newest first; one whose process is gone without a word has crashed."""
    try:
        lines = _file(workspace).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError):  # half-written, or not what it was
            fired = _crashed(ScheduledRun(**json.loads(line)))
            found[fired.flow_run] = fired
    return [*reversed(found.values())]


def _crashed(fired: ScheduledRun) -> ScheduledRun:
    """Crashed where its process is gone; of another machine's nobody can tell from here."""
    pid, _, machine = (*fired.process.split("@"), platform.node())[:3]  # earlier releases named no machine
    if fired.outcome != RUNNING or machine != platform.node() or fired.process == _process(int(pid)):
        return fired
    return replace(fired, outcome=CRASHED, why="its process ended without a word")


def _process(pid: int) -> str:
    return f"{pid}@{birth(pid)}@{platform.node()}"


def _file(workspace: Workspace) -> Path:
    return workspace.state / "scheduled.jsonl"
