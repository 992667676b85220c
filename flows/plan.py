"""A plan of a retraining before it starts: what each stage will take on this machine, what is there, and what would be faster.

Nothing is trained. A few steps of each member are measured, in seconds to minutes. The plan is kept in state/plans; a
retraining of the same data version by the same recipe puts it into its report, beside what each stage took.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from durable import overwrite
from flows.errors import InputError
from flows.registry.versions import ModelVersions
from flows.run.estimate import Counts, Machine, Stage, advice, longest, stages
from flows.run.launch import num_workers, run_child
from flows.run.measure import unanswered
from flows.run.plans import plan_file
from flows.run.run import ResultCache, Run
from flows.settings import LOCAL, Settings
from flows.steps.learn import find_weights, is_trained, side_by_side
from flows.steps.start import data_to_train_on, preview
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder
from models.data.machine import available_bytes
from models.data.manifest import read_manifest
from models.recipe.config import Recipe, digest, to_dict

log = logging.getLogger("cleanshelf")
GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Counts and stages of a retraining to come, the longest stage, and a way to shorten it."""

    data_version: str
    recipe: str
    counts: Counts
    stages: list[Stage]
    longest: str
    shorter: str

    @property
    def seconds(self) -> float:
        """Seconds of all stages that are not there."""
        return sum(stage.seconds for stage in self.stages if not stage.is_there)

    def to_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return {**asdict(self), "stages": [stage.to_dict() for stage in self.stages], "seconds": round(self.seconds, 1)}


def plan(workspace: Workspace, recipe: Recipe) -> Plan:
    """The plan of a retraining of the selected data version.

    Raises:
        InputError: recipe and data do not fit together, or this machine cannot hold what the trainings or a later stage need.
    """
    recipe = find_weights(recipe)
    preview(workspace, recipe)
    data = data_to_train_on(workspace, recipe)
    counts = count(data)
    paces, start_s = measure(recipe, data)
    trainings = max(len(recipe.members), recipe.clean.folds if recipe.clean.rounds else 1)
    machine = Machine(side_by_side(trainings), start_s, num_workers(0), compared(workspace, data))
    found = [with_results(each, workspace, recipe, data) for each in stages(recipe, counts, paces, machine)]
    most = longest(found)
    made = Plan(data.name, recipe.name, counts, found, most.step, advice(most, recipe, machine))
    file = plan_file(workspace, data.name, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    overwrite(file, json.dumps(made.to_dict(), indent=1).encode())
    require_memory(found, machine.side_by_side)
    return made


def require_memory(found: Sequence[Stage], side_by_side: int) -> None:
    """Checks that the stages which are not trainings fit into the free memory; models.training.room checks trainings.

    Raises:
        InputError: one does not; the message has both figures and a way out.
    """
    free, is_here = available_bytes(), Settings().dask in ("", LOCAL)
    for stage in found:
        is_balance = stage.step == "balance member"
        if stage.is_there or stage.step in ("train member", "score fold") or (is_balance and not is_here):
            continue
        number = min(stage.times, side_by_side) if is_balance else 1
        if number * stage.peak_bytes > free:
            way = "set CLEANSHELF_PARALLEL=1, " if stage.peak_bytes <= free else ""
            raise InputError(
                f"{stage.step}: it needs about {number * stage.peak_bytes / GB:.1f} GB of memory, and this machine has "
                f"{free / GB:.1f} GB left; {way}free some, or use a larger machine"
            )


def count(data: DataFolder) -> Counts:
    """Photos that a retraining uses, and their classes."""
    manifest = read_manifest(data)
    train, val, test = (
        int(np.count_nonzero(manifest.kept & (manifest.split == split))) for split in ("train", "val", "test")
    )
    return Counts(len(manifest), len(manifest.classes), train, val, test)


def compared(workspace: Workspace, data: DataFolder) -> int:
    """Test photos about which the gate will ask the current model; 0 without one."""
    versions = ModelVersions(Ledger(workspace.root))
    current = versions.current()
    if current is None:
        return 0
    return unanswered(ResultCache(workspace), data, str(versions.lineage(current).get("graph_sha256")))


def measure(recipe: Recipe, data: DataFolder) -> tuple[list[dict[str, float]], float]:
    """The pace of each member (models.export.pace), and the seconds that a child takes to start. Equal members count once."""
    known, start_s = dict[str, dict[str, float]](), 0.0
    paces = []
    for member in range(len(recipe.members)):
        own = recipe.of(member)
        key = digest(own.members[0].backbone, own.members[0].size, own.train, own.loss)
        if key not in known:
            log.info("plan: measuring a few steps of member %d, %s", member, own.members[0].backbone)
            known[key], taken = _measured(recipe, data, member)
            start_s = max(start_s, taken - known[key]["measured_s"])
        paces.append(known[key])
    return paces, start_s


def _measured(recipe: Recipe, data: DataFolder, member: int) -> tuple[dict[str, float], float]:
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
        arguments = ["--data", data, "--recipe", folder / "recipe.json", "--member", member, "--out", folder]
        run_child("models.export.pace", arguments, say=log.debug, on_gpu=True)
        return json.loads((folder / "pace.json").read_bytes()), time.monotonic() - began


def with_results(stage: Stage, workspace: Workspace, recipe: Recipe, data: DataFolder) -> Stage:
    """The stage, noted as there if every training of it that is known before the run has a result."""
    run = Run(workspace, recipe, id="")
    if stage.step == "train member" and stage.times == len(recipe.members):
        there = all(is_trained(run, data, member) for member in range(len(recipe.members)))
    elif stage.step == "score fold" and recipe.clean.rounds == 1:
        there = all(is_trained(run, data, recipe.clean.member, fold=fold) for fold in range(recipe.clean.folds))
    else:
        there = False
    return Stage(**asdict(stage) | {"is_there": there})
