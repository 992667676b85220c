"""The scheduler's runner: `python -m flows.run.child flows.scheduler.runner PLAN`, with PREFECT_API_URL set.

It registers the deployment with the server, executes its runs one at a time, and requests a run when data arrive.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule

from durable import overwrite
from flows.data.versions import REF
from flows.report.terminal import show_progress
from flows.scheduler.job import scheduled
from flows.scheduler.plan import Plan
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger

log = logging.getLogger("cleanshelf")
NAME = "retrain"
TICK_S = 2.0
ARRIVALS = ("ingest:", "feedback:")  # entries of new data; a retraining adds other entries


def main() -> None:
    """Runs the plan that is the first argument, as JSON."""
    show_progress()
    logging.getLogger("asyncio").addFilter(is_news)
    asyncio.run(run(Plan(**json.loads(sys.argv[1]))))


def is_news(record: logging.LogRecord) -> bool:
    """False for the traceback that Python 3.11 logs if a connection is open when the runner is asked to end."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


async def run(plan: Plan) -> None:
    """Executes the plan until the process ends; first the runs, and the new data, that were missed while it was down."""
    times = timetable(plan, anchor=anchor(plan))
    since = datetime.now(UTC)  # later than the times were made: a new period does not begin with a run
    runner = Runner(name="cleanshelf", limit=1, query_seconds=TICK_S, pause_on_shutdown=False)
    deployment = await runner.aadd_flow(
        scheduled, name=NAME, schedule=times,
        parameters={"workspace": plan.workspace, "recipe": plan.recipe, "overrides": plan.overrides,
                    "folder": plan.folder},
    )  # fmt: skip
    await plan_runs(deployment, since=since)
    watching = asyncio.create_task(watch(plan, deployment))
    try:
        await runner.start()
    finally:
        watching.cancel()


def timetable(plan: Plan, *, anchor: datetime | None) -> Schedule | None:
    """The times of the plan; a period counts from `anchor`, else from now."""
    if plan.every_s:
        return Interval(plan.every_s, anchor_date=anchor)
    return Cron(plan.cron) if plan.cron else None


def anchor(plan: Plan) -> datetime | None:
    """Time at which the last scheduler's next run was due, if its period was the same, so that a restart moves no run."""
    try:
        before = json.loads(_file(Workspace(Path(plan.workspace))).read_bytes())
        return datetime.fromisoformat(before["next"]) if before["every_s"] == plan.every_s else None
    except (OSError, ValueError, KeyError, TypeError):  # `next` is "" while no run is due
        return None


async def plan_runs(deployment: UUID, *, since: datetime) -> None:
    """Makes Prefect write down the runs that are due after `since`, shortly before the deployment was registered.

    The registration removes the future runs, and Prefect writes down new ones seconds later, without those due meanwhile.
    """
    async with get_client() as client:
        await client.request(
            "POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={"start_time": since.isoformat()}
        )


async def watch(plan: Plan, deployment: UUID) -> None:
    """Requests a run when the ledger has new data, and writes down when the next run is due."""
    workspace = Workspace(Path(plan.workspace))
    ledger, last_tip, last_due = Ledger(workspace.root), None, None
    async with get_client() as client:
        while True:
            tip = ledger.tip(REF)
            if plan.on_new_data and tip != last_tip and (last_tip is None or came_in(ledger, since=last_tip)):
                await client.create_flow_run_from_deployment(deployment)
            last_tip = tip
            next_run = await next_due(client, deployment)
            if (due := next_run.isoformat(timespec="seconds") if next_run else "") != last_due:
                write_plan(workspace, plan, due=due)
                log.info("next scheduled run: %s", due or "when data arrive")
                last_due = due
            await asyncio.sleep(TICK_S)


def came_in(ledger: Ledger, *, since: str) -> bool:
    """True if an entry after `since` added data."""
    for commit in ledger.log(REF):
        if commit.sha == since:
            return False
        if commit.message.startswith(ARRIVALS):
            return True
    return False


async def next_due(client: Any, deployment: UUID) -> datetime | None:
    """Time at which the server will start the next run, or None if none is scheduled."""
    waiting = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(waiting), limit=1,
                                       sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC)  # fmt: skip
    return runs[0].next_scheduled_start_time if runs else None


def write_plan(workspace: Workspace, plan: Plan, *, due: str) -> None:
    """Writes the plan and the time of the next run to state/schedule.json, for `cleanshelf schedule --status`."""
    overwrite(_file(workspace), json.dumps(asdict(plan) | {"next": due}, indent=1).encode())


def _file(workspace: Workspace) -> Path:
    return workspace.state / "schedule.json"


if __name__ == "__main__":
    main()
