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
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event

from prefect.settings import PREFECT_API_URL, temporary_settings

from contract.environment import process_variables
from flows.errors import WorkspaceBusy, WorldError
from flows.orchestrator.events import announce, scheduler_server
from flows.orchestrator.server import end, mark_cancelled, mark_crashed, prefect_server, unfinished
from flows.run.signals import stop_requested
from flows.scheduler.plan import Plan
from flows.scheduler.record import note_cancelled
from flows.steps.learn import find_weights
from flows.workspace import Workspace
from models.recipe.config import load_recipe

log = logging.getLogger("cleanshelf")
STOPPED = "the scheduler was stopped; the next run resumes from the checkpoints"


def schedule(workspace: Workspace, plan: Plan, *, port: int) -> None:
    """Runs the plan until Ctrl-C or SIGTERM.

    Raises:
        WorkspaceBusy: another scheduler runs on the workspace.
        InputError: weights that the recipe names are not available.
        WorldError: the server or the runner ended by itself.
    """
    with suppress(KeyboardInterrupt), stop_requested() as stop, workspace.lock("schedule", name="schedule"):
        find_weights(load_recipe(plan.recipe, overrides=plan.overrides))  # so that a lack is not found out at night
        _run(workspace, plan, port=port, stop=stop)


def _run(workspace: Workspace, plan: Plan, *, port: int, stop: Event) -> None:
    """Runs the plan on a server of its own until `stop`; Ctrl-C ends it while the server starts."""
    with (
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
        with workspace.idle("schedule"):
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
    folder = Workspace(Path(plan.workspace)).state  # Prefect reads files of the current folder
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, cwd=folder, start_new_session=True)
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
