"""The record of scheduled runs, and the state of the scheduler. Read without a server and without Prefect.

Each run is a line of state/scheduled.jsonl, which `cleanshelf schedule --status` shows.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.orchestrator.events import scheduler_server
from flows.workspace import Workspace
from serving.server.process import birth

RUNNING, CRASHED, CANCELLED = "running", "crashed", "cancelled"


@dataclass(frozen=True)
class ScheduledRun:
    """A run of the schedule, as written to state/scheduled.jsonl and shown by `schedule --status`."""

    at: str  # start, ISO 8601
    outcome: str  # running, published, unchanged, refused, failed, cancelled or crashed
    why: str
    flow_run: str  # id in Prefect
    process: str  # pid, time of birth and machine


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


def status(workspace: Workspace) -> dict[str, Any]:
    """The scheduler's state, plan and next run, and its last runs, newest first."""
    server = scheduler_server(workspace)
    try:
        plan = json.loads((workspace.state / "schedule.json").read_bytes())
    except FileNotFoundError:
        plan = {}
    plan = {key: plan.get(key) for key in ("recipe", "overrides", "cron", "every_s", "on_new_data", "next")}
    runs = [{key: value for key, value in asdict(run).items() if key != "process"} for run in history(workspace)]
    return {
        "running": server is not None,
        "url": server.url.removesuffix("/api") if server else None,
        **plan,
        "next": plan["next"] if server else None,
        "runs": runs,
    }


def process_name(pid: int) -> str:
    """A process as `ScheduledRun.process` names it."""
    return f"{pid}@{birth(pid)}@{platform.node()}"


def _checked(run: ScheduledRun) -> ScheduledRun:
    """The run, as crashed if it is unfinished and its process is gone; a run on another machine is left as it is."""
    pid, _, machine = (*run.process.split("@"), platform.node())[:3]  # earlier releases named no machine
    if run.outcome != RUNNING or machine != platform.node() or run.process == process_name(int(pid)):
        return run
    return replace(run, outcome=CRASHED, why="its process ended unexpectedly")


def _file(workspace: Workspace) -> Path:
    return workspace.state / "scheduled.jsonl"
