"""Commands that tests kill: `python -m tests.verbs VERB ...`. All imports are done before the command begins.

The verbs are those of `cleanshelf`, and four that run parts of flows without a Prefect server, whose start would
take most of the time: `ingest WORKSPACE SOURCE`; `clean WORKSPACE FOLD...`, a round of cleaning with the scores in
these folders; `select WORKSPACE VERSION`, which a publication does with a version that `clean` made; `materialise
WORKSPACE VERSION`, which every run does with the version that it reads.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from flows.cli import main as cleanshelf
from flows.data.versions import DataVersions
from flows.ingest import commit_version, prepare_version
from flows.run.inputs import inputs
from flows.run.run import Run, sweep_runs
from flows.steps.clean import clean as clean_stage
from flows.steps.clean import deliver, select_cleaned
from flows.steps.start import select_data
from flows.workspace import DATA_LOCK, Workspace
from models.recipe.config import load_recipe

for needed in ("purge", "rollback", "data.garbage"):  # which the verbs import when they run
    importlib.import_module(f"flows.{needed}")


def ingest(workspace: Workspace, source: str | Path) -> None:
    """Runs `cleanshelf ingest` without a Prefect server."""
    with workspace.lock("ingest", name=DATA_LOCK):
        DataVersions(workspace).repair()
        commit_version(workspace, *prepare_version(workspace, Path(source), 0.1, 0.2))


def clean(workspace: Workspace, *folds: str | Path) -> Path:
    """Runs the first round of cleaning of `cleanshelf retrain`, once the folds have been scored."""
    run = Run(workspace, load_recipe("smoke"), id="killed")
    with workspace.lock("retrain"):
        DataVersions(workspace).repair(staging=False)
        sweep_runs(workspace)
        run.open(inputs(workspace, run.recipe))
        return clean_stage.fn(run, deliver.fn(run, select_data.fn(run)), [Path(fold) for fold in folds], 1)


def select(workspace: Workspace, version: str) -> str:
    """Selects a version that `clean` made, as the publication of its model does."""
    with workspace.lock("publish"):
        DataVersions(workspace).repair(staging=False)
        return select_cleaned.fn(workspace, version, run="killed")


def materialise(workspace: Workspace, version: str) -> None:
    """Writes a data version as files."""
    DataVersions(workspace).materialise(version)


def main() -> None:
    """Runs the verb named on the command line."""
    parts = {"ingest": ingest, "clean": clean, "select": select, "materialise": materialise}
    verb, *rest = sys.argv[1:]
    if verb in parts:
        parts[verb](Workspace.find(Path(rest[0])), *rest[1:])
    else:
        cleanshelf()


if __name__ == "__main__":
    main()
