"""The flow of a deployment: a retraining, skipped if nothing has changed since the last one.

Each run is a line of state/scheduled.jsonl, which `cleanshelf schedule --status` shows without a server.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

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
PATIENCE_S = 3600.0  # how long to wait for another command that holds the workspace
RETRY_S = 10.0
RUNNING, CRASHED, CANCELLED = "running", "crashed", "cancelled"
FAILED = ("refused", "failed")


@dataclass(frozen=True)
class ScheduledRun:
    """A run of the schedule, as written to state/scheduled.jsonl and shown by `schedule --status`."""

    at: str  # start, ISO 8601
    outcome: str  # running, published, unchanged, refused, failed, cancelled or crashed
    why: str
    flow_run: str  # id in Prefect
    process: str  # pid, time of birth and machine


@flow(name="scheduled")
def scheduled(workspace: str, recipe: str = "robust", overrides: list[str] | None = None) -> State[None]:
    """Retrains if anything has changed since the last run; ends as Published, Unchanged, Refused or Failed."""
    show_progress()
    shop = Workspace.find(Path(workspace))
    run = ScheduledRun(
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", RUNNING, "", str(runtime.flow_run.id), _process(os.getpid())
    )
    note(shop, run)
    try:
        outcome, why = retrain_if_changed(shop, load_recipe(recipe, overrides=overrides or []))
    except GateRefused as error:
        outcome, why = "refused", str(error)
    except (CleanShelfError, OSError) as error:
        outcome, why = "failed", str(error)
    note(shop, replace(run, outcome=outcome, why=why))
    log.info("scheduled run %s: %s", outcome, why)
    kind = StateType.FAILED if outcome in FAILED else StateType.COMPLETED
    return State(type=kind, name=outcome.capitalize(), message=why)


def retrain_if_changed(workspace: Workspace, recipe: Recipe) -> tuple[str, str]:
    """Outcome and reason; waits up to `PATIENCE_S` while another command holds the workspace."""
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


def note(workspace: Workspace, run: ScheduledRun) -> None:
    """Appends a run to the file; of several lines with one flow run, the last counts."""
    with _file(workspace).open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(asdict(run))}\n")  # a kill may have left the line before it without an end


def history(workspace: Workspace) -> list[ScheduledRun]:
    """The scheduled runs, newest first; a run whose process is gone without a final line has crashed."""
    try:
        lines = _file(workspace).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError):  # a half-written or damaged line
            run = _checked(ScheduledRun(**json.loads(line)))
            found[run.flow_run] = run
    return [*reversed(found.values())]


def note_cancelled(workspace: Workspace, flow_runs: Sequence[UUID], why: str) -> None:
    """Appends a last line for each of these runs that has none: the user ended them."""
    ended = {str(each) for each in flow_runs}
    for run in history(workspace):
        if run.flow_run in ended and run.outcome in (RUNNING, CRASHED):
            note(workspace, replace(run, outcome=CANCELLED, why=why))


def _checked(run: ScheduledRun) -> ScheduledRun:
    """The run, as crashed if it is unfinished and its process is gone; a run on another machine is left as it is."""
    pid, _, machine = (*run.process.split("@"), platform.node())[:3]  # earlier releases named no machine
    if run.outcome != RUNNING or machine != platform.node() or run.process == _process(int(pid)):
        return run
    return replace(run, outcome=CRASHED, why="its process ended unexpectedly")


def _process(pid: int) -> str:
    return f"{pid}@{birth(pid)}@{platform.node()}"


def _file(workspace: Workspace) -> Path:
    return workspace.state / "scheduled.jsonl"
