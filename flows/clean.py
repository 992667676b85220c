"""The cleaning flow: makes the data version that a retraining by the same recipe would make, and trains no model."""

from __future__ import annotations

from dataclasses import dataclass

from flows.errors import InputError
from flows.run.run import Run
from flows.run.step import as_flow
from flows.steps.clean import clean_labels, deliver, select_cleaned
from flows.steps.start import new_run, select_data
from flows.workspace import Workspace
from models.data.manifest import count
from models.recipe.config import Recipe


@dataclass(frozen=True)
class Cleaned:
    """The data versions before and after cleaning, and the photo counts of the latter.

    selection: the reason why the latter is not selected; "" if it is.
    """

    data_before: str
    data_after: str
    counts: dict[str, int]
    selection: str = ""


def clean_data(workspace: Workspace, recipe: Recipe) -> Cleaned:
    """Cleans the labels of the selected data version as the recipe's `[clean]` says, and selects the result.

    What was delivered meanwhile stays selected; the result is known then, and not selected.

    Raises:
        InputError: recipe and data do not fit together, or data/ was edited by hand; nothing was started.
    """
    if not recipe.clean.rounds:
        raise InputError("clean.rounds: 0 leaves nothing to do; set 1 or more")
    with new_run(workspace, recipe, verb="clean") as (run, runner):
        return as_flow(cleaning, "clean", runner=runner)(run)


def cleaning(run: Run) -> Cleaned:
    """Cleans the data that the run starts from and selects the result."""
    delivered = deliver(run, select_data(run))
    cleaned = clean_labels(run, delivered)
    selection = select_cleaned(run.workspace, cleaned.name, run=run.id)
    return Cleaned(delivered.name, cleaned.name, count(cleaned), selection)
