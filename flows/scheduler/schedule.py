"""The scheduler: one process that holds the lock, with a Prefect server and a runner as its children.

    cleanshelf schedule               holds state/schedule
    |- Prefect's server               keeps its database in state/prefect over restarts
    `- flows.scheduler.runner         registers the deployment, executes one run at a time, watches for new data
       `- a retraining

Each child leads a process group and ends with us (flows.run.child), so that nothing is left behind, however we end.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from contract.environment import process_variables
from flows.errors import InputError, WorkspaceBusy, WorldError
from flows.orchestrator.events import announce, scheduler_server
from flows.orchestrator.server import end, mark_cancelled, mark_crashed, prefect_server, unfinished
from flows.run.signals import stop_requested
from flows.scheduler.job import history, note_cancelled
from flows.scheduler.runner import Plan
from flows.workspace import Workspace
from models.recipe.config import load_recipe

log = logging.getLogger("cleanshelf")
WEEKLY = "0 3 * * 1"
STOPPED = "the scheduler was stopped; the next run resumes from the checkpoints"
PERIOD = re.compile(r"([1-9]\d{0,5})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def make_plan(
    workspace: Workspace,
    recipe: str,
    *,
    overrides: list[str],
    cron: str = "",
    every: str = "",
    on_new_data: bool = False,
) -> Plan:
    """A checked plan; `WEEKLY` if neither cron, every nor on_new_data is given.

    Raises:
        InputError: a time cannot be parsed, or both cron and every are given.
        ConfigError: the recipe does not exist, or does not accept an override.
    """
    load_recipe(recipe, overrides=overrides)
    if cron and every:
        raise InputError("--cron and --every exclude each other; give one of them")
    source = str(Path(recipe).absolute()) if recipe.endswith(".toml") else recipe
    if not (cron or every or on_new_data):
        cron = WEEKLY
    return Plan(str(workspace.root), source, overrides, check_cron(cron) if cron else None,
                read_period(every) if every else None, on_new_data)  # fmt: skip


def check_cron(text: str) -> str:
    """The cron expression, if it can be parsed.

    Raises:
        InputError: it cannot be parsed.
    """
    try:
        return CronSchedule(cron=text).cron
    except ValidationError:
        raise InputError(
            f"--cron {text!r} is not a cron expression; write minute, hour, day, month, weekday, such as {WEEKLY!r}"
        ) from None


def read_period(text: str) -> float:
    """Seconds of a period such as 90s, 30m, 6h or 7d.

    Raises:
        InputError: the text is not a period.
    """
    found = PERIOD.fullmatch(text.strip())
    if not found:
        raise InputError(f"--every {text!r} is not a period; write a number and s, m, h or d, such as 30m, 6h or 7d")
    return float(found[1]) * SECONDS[found[2]]


def schedule(workspace: Workspace, plan: Plan, *, port: int) -> None:
    """Runs the plan until Ctrl-C or SIGTERM.

    Raises:
        WorkspaceBusy: another scheduler runs on the workspace.
        WorldError: the server or the runner ended by itself.
    """
    with (
        suppress(KeyboardInterrupt),  # it was stopped while the server started
        stop_requested() as stop,
        workspace.lock("schedule", name="schedule"),
        prefect_server(workspace, port=port, stop=stop) as server,
        temporary_settings({PREFECT_API_URL: server.url}),
    ):
        announce(workspace, server)
        log.info("Prefect's server answers at %s", server.url.removesuffix("/api"))
        reconcile(workspace)
        with _runner(plan, server.url) as runner:
            _wait(stop, runner, pid=server.pid, workspace=workspace)
            under_way = unfinished(workspace)
        mark_cancelled(under_way, STOPPED)
        note_cancelled(workspace, under_way, STOPPED)
        reconcile(workspace)


def reconcile(workspace: Workspace) -> None:
    """Marks runs as crashed that Prefect wrongly shows as running; skipped while a command holds the workspace."""
    try:
        with workspace.lock("schedule"):
            crashed = unfinished(workspace)
            mark_crashed(crashed)
    except WorkspaceBusy as error:
        log.info("unfinished runs are not checked now: %s", error)
        return
    if crashed:
        log.warning("%d runs were shown as running without a process; they are marked as crashed now", len(crashed))


@contextmanager
def _runner(plan: Plan, url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flows.run.child", "flows.scheduler.runner", json.dumps(asdict(plan))]
    variables = process_variables(PYTHONWARNINGS="ignore", PREFECT_API_URL=url)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, start_new_session=True)
    try:
        yield child
    finally:
        end(child)


def _wait(stop: Event, runner: subprocess.Popen[bytes], *, pid: int, workspace: Workspace) -> None:
    """Returns when `stop` is set.

    Raises:
        WorldError: the runner or the server ended by itself.
    """
    while not stop.wait(0.5):
        if runner.poll() is not None:
            raise WorldError(
                f"the runner of scheduled flows ended with code {runner.returncode}; start the scheduler again"
            )
        if scheduler_server(workspace) is None:
            raise WorldError(f"Prefect's server (process {pid}) ended; see {workspace.state / 'prefect-server.log'}")


def status(workspace: Workspace) -> dict[str, Any]:
    """The scheduler's state, plan and next run, and its last runs, newest first. Needs no server."""
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
