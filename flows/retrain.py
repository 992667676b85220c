"""The retraining flow, from a data version to an endpoint that answers. This file is the table of contents."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.clean import clean, settled
from flows.data_version import DataVersions
from flows.endpoint import endpoint
from flows.errors import GateRefused
from flows.evidence import evidence, prove
from flows.gates import Verdict
from flows.learn import balance, calibrate, check, ensemble, finetune, score_fold, train, views
from flows.orchestrator import orchestrated
from flows.progress import to_json
from flows.publish import Seen, export, gate, levels, publish, recognise_samples, variants
from flows.report import Row, effects
from flows.run import Run
from flows.settings import Settings, num_workers
from flows.stage import side_by_side, stage, together
from flows.story import tell
from flows.unchanged import inputs, version_to_train_on
from flows.workspace import Workspace
from models.config import Recipe, digest


@dataclass(frozen=True)
class Report:
    """What a retraining did; model_version is None where the gate refused."""

    run: str
    data_before: str
    data_after: str
    steps: list[Row]
    evidence: list[dict[str, Any]]  # why each step stayed or went
    verdict: Verdict
    model_version: int | None = None
    seen: list[Seen] = field(default_factory=list)


def retrain(workspace: Workspace, recipe: Recipe) -> Report:
    """Retrains on the selected data version and publishes the result; the workspace is locked meanwhile.

    Raises:
        InputError: recipe and data do not go together, or data/ was edited by hand; nothing was started.
        GateRefused: the model is worse than the one that serves; the run's verdict.json says why, and it is not served.
    """
    run = Run(workspace, recipe, id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{digest(recipe)[:6]}")
    workers = max(num_workers(recipe.of(member).train.workers) for member in range(len(recipe.members)))
    places = Settings().num_parallel(workers=workers)
    with workspace.lock("retrain"):
        DataVersions(workspace).repair()
        preview(workspace, recipe)
        run.open(inputs(workspace, recipe))
        with orchestrated(workspace), side_by_side(workspace, places=places) as runner:
            return retraining.with_options(task_runner=runner)(run)


def preview(workspace: Workspace, recipe: Recipe) -> str:
    """The id of the data version that `retrain` would train on, once data and recipe are seen to go together.

    Raises:
        InputError: they do not, or data/ was edited by hand.
    """
    data = data_to_train_on(workspace, recipe)
    check(recipe, data)
    return data.name


def data_to_train_on(workspace: Workspace, recipe: Recipe) -> Path:
    """The selected data version, or what it was cleaned from where the recipe cleans: a verified folder that no rollback changes.

    Raises:
        UnknownVersion: there is none yet.
        LocalEdits: data/ was edited by hand.
    """
    versions = DataVersions(workspace)
    versions.check_clean()
    return versions.materialise(version_to_train_on(versions, recipe))


@flow(name="retrain", validate_parameters=False)
def retraining(run: Run) -> Report:
    """Data, train, clean, retrain, tune, balance, weigh, calibrate, export, judge, publish, ask; what has not changed is there.

    What a step made is used where validation photos prove that it pays, else what was there before.
    """
    members = range(len(run.recipe.members))

    delivered = select_data(run)  # labels as they came
    first = together([train.submit(run, delivered, member) for member in members])

    data = delivered  # each round of cleaning makes a data version
    for round in range(1, run.recipe.clean.rounds + 1):
        folds = together([score_fold.submit(run, data, fold) for fold in range(run.recipe.clean.folds)])
        before, data = data, clean(run, data, folds, round)
        if settled(before, data, stop_share=run.recipe.clean.stop_share):
            break
    labels = [delivered if member.data == "delivered" else data for member in run.recipe.members]
    retrained = together([train.submit(run, labels[member], member) for member in members])
    proven = prove(run, data, "cleaning", first, retrained)

    sharp: list[Path] = []
    if run.recipe.finetune.epochs:
        sharp = together([finetune.submit(run, labels[member], member, proven[member]) for member in members])
        proven = prove(run, data, "fine-tuning", proven, sharp)
    balanced = together([balance.submit(run, data, member, proven[member]) for member in members])

    weights = ensemble(run, data, balanced)
    looks = views(run, data, balanced, weights)
    calibrated = calibrate(run, data, balanced, weights, looks)
    exported = export(run, data, balanced, weights, looks, calibrated)
    graph = variants(run, data, exported, levels(run, data, balanced, weights, looks))
    verdict = gate(run, data, graph)
    steps = effects(first, retrained, sharp, balanced, weights, looks, graph, data)

    report = record(
        run, Report(run.id, delivered.name, data.name, steps, evidence(run, balanced, weights, looks), verdict)
    )

    if not verdict.passed:
        raise GateRefused(list(verdict.reasons))

    with endpoint(run.workspace):
        version = publish(run, data, graph, verdict)
        seen = recognise_samples(run, data)
    return record(run, replace(report, model_version=version, seen=seen))


@stage("select data")
def select_data(run: Run) -> Path:
    """The photos and labels that the run starts from."""
    return data_to_train_on(run.workspace, run.recipe)


@stage("record")
def record(run: Run, report: Report) -> Report:
    """Writes run.json: what the run did, for people and programs; Prefect is told too, once it is decided."""
    (run.folder / "run.json").write_text(to_json(asdict(report)), encoding="utf-8")
    tell(report)
    return report
