"""The part of the scheduler that runs things: `python -m flows.run.child flows.scheduler.runner PLAN`, with PREFECT_API_URL set.

It registers the deployment with the server, executes its runs one at a time, and asks for one when data came in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runner import Runner

from durable import overwrite
from flows.data.versions import REF
from flows.report.terminal import show_progress
from flows.scheduler.job import scheduled
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger

log = logging.getLogger("cleanshelf")
NAME = "retrain"
TICK_S = 2.0
ARRIVALS = ("ingest:", "feedback:")  # steps that bring data in; a retraining adds entries of its own


@dataclass(frozen=True)
class Plan:
    """What is run, and when: by a cron expression (UTC), each so many seconds, whenever data came in, or several of them."""

    workspace: str
    recipe: str
    overrides: list[str]
    cron: str | None = None
    every_s: float | None = None
    on_new_data: bool = False


def main() -> None:
    show_progress()
    asyncio.run(serve(Plan(**json.loads(sys.argv[1]))))


async def serve(plan: Plan) -> None:
    """Runs until it is ended. What was missed while no scheduler ran is not made up for, except that new data are looked for."""
    runner = Runner(name="cleanshelf", limit=1, query_seconds=TICK_S, pause_on_shutdown=False)
    deployment = await runner.aadd_flow(
        scheduled, name=NAME, cron=plan.cron, interval=plan.every_s,
        parameters={"workspace": plan.workspace, "recipe": plan.recipe, "overrides": plan.overrides},
    )  # fmt: skip
    watching = asyncio.create_task(watch(plan, deployment))
    try:
        await runner.start()
    finally:
        watching.cancel()


async def watch(plan: Plan, deployment: UUID) -> None:
    """Asks for a run when the ledger tells of data that came in, and writes down when the next run is due."""
    workspace = Workspace(Path(plan.workspace))
    ledger, seen, told = Ledger(workspace.root), None, None
    async with get_client() as client:
        while True:
            tip = ledger.tip(REF)
            if plan.on_new_data and tip != seen and (seen is None or came_in(ledger, since=seen)):
                await client.create_flow_run_from_deployment(deployment)
            seen = tip
            due = await next_due(client, deployment)
            if (now := due.isoformat(timespec="seconds") if due else "") != told:
                write_plan(workspace, plan, due=now)
                log.info("next scheduled run: %s", now or "when data come in")
                told = now
            await asyncio.sleep(TICK_S)


def came_in(ledger: Ledger, *, since: str) -> bool:
    """Whether an entry later than `since` brought data in."""
    for commit in ledger.log(REF):
        if commit.sha == since:
            return False
        if commit.message.startswith(ARRIVALS):
            return True
    return False


async def next_due(client: Any, deployment: UUID) -> datetime | None:
    """When the server will start the next run, or None where it has none on its list."""
    waiting = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(waiting), limit=1,
                                       sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC)  # fmt: skip
    return runs[0].next_scheduled_start_time if runs else None


def write_plan(workspace: Workspace, plan: Plan, *, due: str) -> None:
    """For `cleanshelf schedule --status`."""
    overwrite(workspace.state / "schedule.json", json.dumps(asdict(plan) | {"next": due}, indent=1).encode())


if __name__ == "__main__":
    main()
