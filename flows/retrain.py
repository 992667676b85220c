"""The retraining flow, from a data version to a model that answers requests. This file is its table of contents."""

from __future__ import annotations

from flows.report.figures import photos_to_look_at
from flows.report.run_report import Report
from flows.report.steps import step_accuracies
from flows.run.run import Run
from flows.run.step import as_flow
from flows.steps.clean import clean_labels, deliver
from flows.steps.distil import distil
from flows.steps.export import choose_variant, export, export_other_crops
from flows.steps.gate import gate
from flows.steps.learn import (
    balance_members,
    calibrate,
    choose_crops,
    finetune_members,
    train_members,
    weigh_members,
)
from flows.steps.publish import publish_or_refuse
from flows.steps.report import all_figures, write_report
from flows.steps.selection import Selection, decisions_of, keep_gains, learnt_from
from flows.steps.start import new_run, select_data
from flows.workspace import Workspace
from flows.workspace.results import Served, Trained
from models.recipe.config import Recipe


def retrain(workspace: Workspace, recipe: Recipe, *, promote: bool = True) -> Report:
    """Retrains on the selected data version and publishes the model. No other run starts meanwhile; deliveries may come in.

    promote: False only registers the model; `cleanshelf promote` makes it the current model later.

    Raises:
        InputError: recipe and data do not fit together, or data/ was edited by hand; nothing was started.
        GateRefused: the candidate is worse than the current model, which keeps serving; verdict.json of the run says why.
    """
    with new_run(workspace, recipe, verb="retrain") as (run, runner):
        return as_flow(retraining, "retrain", runner=runner)(run, promote=promote)


def retraining(run: Run, *, promote: bool) -> Report:
    """Runs every step. A step whose inputs have not changed reuses its cached result.

    A step that does not gain on the selection photos is dropped: later steps use the result before it. `data` is the
    version that the published model learnt from: if cleaning is dropped for every member, the one before cleaning.
    """
    start = select_data(run)
    delivered = deliver(run, start)
    as_delivered = train_members(run, [delivered for _ in run.recipe.members])

    cleaned = clean_labels(run, delivered) if run.recipe.clean.rounds else start
    labels = [delivered if member.data == "delivered" else cleaned for member in run.recipe.members]
    retrained = train_members(run, labels)
    kept = keep_gains(run, cleaned, "cleaning", Selection(as_delivered), retrained)
    labels = learnt_from(kept, retrained, labels, before=delivered)
    data = cleaned if cleaned in labels else delivered

    finetuned: list[Trained] = []
    if run.recipe.finetune.epochs:
        finetuned = finetune_members(run, labels, kept.networks)
        kept = keep_gains(run, cleaned, "fine-tuning", kept, finetuned)
    balanced = balance_members(run, labels, kept.networks)

    weights = weigh_members(run, data, balanced)
    served = Served(balanced, weights)
    if run.recipe.distil.backbone:
        served = distil(run, data, served)
    crops = choose_crops(run, data, served)
    calibration = calibrate(run, data, served, crops)
    exported = export(run, data, served, crops, calibration)
    graph = choose_variant(run, data, exported, export_other_crops(run, data, served, crops))
    verdict = gate(run, data, graph)

    steps = step_accuracies(
        data,
        as_delivered=as_delivered,
        cleaned=retrained,
        finetuned=finetuned,
        balanced=balanced,
        weights=weights,
        students=served.students,
        crops=crops,
        graph=graph,
    )
    report = Report(
        run=run.id,
        data_before=delivered.name,
        data_after=data.name,
        cleaned=cleaned.name,
        steps=steps,
        evidence=decisions_of(kept, balanced, weights, crops, student=served.decision),
        verdict=verdict,
        figures=all_figures(run, data, graph, verdict, balanced=balanced, cleaned=cleaned, final=steps[-1]),
        look_at=photos_to_look_at(data, verdict),
    )
    return publish_or_refuse(run, data, graph, write_report(run, report, data), promote=promote)
