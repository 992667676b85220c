"""The flow of a deployment: a retraining, skipped if nothing has changed since the last one."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, runtime
from prefect.client.schemas.objects import StateType
from prefect.states import State

from contract import CleanShelfError
from flows.data.versions import DataVersions
from flows.errors import GateRefused, WorkspaceBusy
from flows.report.terminal import show_progress
from flows.retrain import retrain
from flows.run.inputs import ended_before, inputs, version_to_train_on
from flows.scheduler.record import RUNNING, ScheduledRun, note, process_name
from flows.steps.learn import find_weights
from flows.workspace import Workspace
from models.recipe.config import Recipe, load_recipe

log = logging.getLogger("cleanshelf")
PATIENCE_S = 3600.0  # how long to wait for another command that holds the workspace
RETRY_S = 10.0
FAILED = ("refused", "failed")


@flow(name="scheduled")
def scheduled(
    workspace: str, recipe: str = "robust", overrides: list[str] | None = None, folder: str = ""
) -> State[None]:
    """Retrains if anything has changed since the last run; ends as Published, Unchanged, Refused or Failed.

    folder: the folder from which relative paths in the recipe count; "" for the current one.
    """
    show_progress()
    shop = Workspace.find(Path(workspace))
    run = ScheduledRun(
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", RUNNING, "", str(runtime.flow_run.id), process_name(os.getpid())
    )
    note(shop, run)
    try:
        os.chdir(folder or ".")
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
    version_to_train_on(DataVersions(workspace), recipe)  # without data, nothing is downloaded
    recipe = find_weights(recipe)
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
