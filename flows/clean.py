"""The cleaning flow: makes the data version that a retraining by the same recipe would make, and trains no model."""

from __future__ import annotations

from dataclasses import dataclass

from flows.errors import InputError
from flows.run.run import Run
from flows.run.step import as_flow
from flows.steps.clean import clean_labels
from flows.steps.start import new_run, select_data
from flows.workspace import Workspace
from flows.workspace.results import DataFolder
from models.data.manifest import count
from models.recipe.config import Recipe


@dataclass(frozen=True)
class Cleaned:
    """The data versions before and after cleaning, and the photo counts of the latter."""

    data_before: str
    data_after: str
    counts: dict[str, int]


def clean_data(workspace: Workspace, recipe: Recipe) -> Cleaned:
    """Cleans the labels of the selected data version as the recipe's `[clean]` says, and selects the result.

    Raises:
        InputError: recipe and data do not fit together, or data/ was edited by hand; nothing was started.
    """
    if not recipe.clean.rounds:
        raise InputError("clean.rounds: 0 leaves nothing to do; set 1 or more")
    with new_run(workspace, recipe, verb="clean") as (run, runner):
        before, after = as_flow(cleaning, "clean", runner=runner)(run)
    return Cleaned(before.name, after.name, count(after))


def cleaning(run: Run) -> tuple[DataFolder, DataFolder]:
    """The folders of the data versions before and after cleaning."""
    delivered = select_data(run)
    return delivered, clean_labels(run, delivered)
