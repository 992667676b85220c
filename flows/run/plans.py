"""Plans of retrainings, kept in state/plans, and their comparison with what a run took."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.run.estimate import compared
from flows.run.history import RunStep
from flows.workspace import Workspace
from models.recipe.config import Recipe, digest


def plan_file(workspace: Workspace, data_version: str, recipe: Recipe) -> Path:
    """The file of the plan of this data version and recipe."""
    return workspace.state / "plans" / f"{data_version[:12]}-{digest(recipe)}.json"


def against_plan(workspace: Workspace, data_version: str, recipe: Recipe, steps: list[RunStep]) -> list[dict[str, Any]]:
    """Rows of planned and taken seconds of each stage that the run computed; none without a plan."""
    took = dict[str, float]()
    for step in steps:
        if step.seconds is not None and not step.is_reused:
            took[step.step] = took.get(step.step, 0.0) + step.seconds
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(plan_file(workspace, data_version, recipe).read_bytes())
        return compared(content["stages"], took)
    return []
