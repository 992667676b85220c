"""The retraining flow, from a data version to an endpoint that answers. This file is the table of contents."""

from __future__ import annotations

from prefect import flow

from flows.report.figures import figures
from flows.report.run_report import Report
from flows.report.steps import effects
from flows.run.run import Run
from flows.run.step import together
from flows.steps.clean import rounds
from flows.steps.export import export, levels, variants
from flows.steps.gate import gate
from flows.steps.learn import balance, calibrate, choose_crops, ensemble, finetune, train
from flows.steps.prove import evidence, prove
from flows.steps.publish import record, released
from flows.steps.start import select_data, started
from flows.workspace import Workspace
from flows.workspace.results import Trained
from models.recipe.config import Recipe


def retrain(workspace: Workspace, recipe: Recipe, *, promote: bool = True) -> Report:
    """Retrains on the selected data version and publishes the result; the workspace is locked meanwhile.

    promote: False only registers and stages the model; `cleanshelf promote` lets it answer.

    Raises:
        InputError: recipe and data do not go together, or data/ was edited by hand; nothing was started.
        GateRefused: the model is worse than the one that serves; the run's verdict.json says why, and it is not served.
    """
    with started(workspace, recipe, verb="retrain") as (run, runner):
        return retraining.with_options(task_runner=runner)(run, promote=promote)


@flow(name="retrain", validate_parameters=False)
def retraining(run: Run, *, promote: bool) -> Report:
    """Data, train, clean, retrain, tune, balance, weigh, calibrate, export, judge, publish, ask; what has not changed is there.

    What a step made is used where validation photos prove that it pays, else what was there before.
    """
    members = range(len(run.recipe.members))

    delivered = select_data(run)  # labels as they came
    first = together([train.submit(run, delivered, member) for member in members])

    data = rounds(run, delivered)  # each round of cleaning makes a data version
    labels = [delivered if member.data == "delivered" else data for member in run.recipe.members]
    retrained = together([train.submit(run, labels[member], member) for member in members])
    proven = prove(run, data, "cleaning", before=first, after=retrained)

    finetuned: list[Trained] = []
    if run.recipe.finetune.epochs:
        finetuned = together([finetune.submit(run, labels[member], member, proven[member]) for member in members])
        proven = prove(run, data, "fine-tuning", before=proven, after=finetuned)
    balanced = together([balance.submit(run, data, member, proven[member]) for member in members])

    weights = ensemble(run, data, balanced)
    crops = choose_crops(run, data, balanced, weights)
    calibration = calibrate(run, data, balanced, weights, crops)
    exported = export(run, data, balanced, weights, crops, calibration)
    graph = variants(run, data, exported, levels(run, data, balanced, weights, crops))
    verdict = gate(run, data, graph)
    steps = effects(data, as_delivered=first, cleaned=retrained, finetuned=finetuned, balanced=balanced, weights=weights,
                    crops=crops, graph=graph)  # fmt: skip

    proofs, shown = evidence(run, balanced, weights, crops), figures(data, balanced, graph)
    report = record(run, Report(run.id, delivered.name, data.name, steps, proofs, verdict, shown))

    return released(run, data, graph, report, promote=promote)
