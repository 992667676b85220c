"""The retraining flow, from a data version to an endpoint that answers. This file is the table of contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows.clean import rounds
from flows.endpoint import endpoint
from flows.errors import GateRefused
from flows.evidence import evidence, prove
from flows.figures import Figure, figures
from flows.learn import balance, calibrate, ensemble, finetune, train, views
from flows.ledger import Ledger
from flows.model_version import ModelVersions
from flows.progress import to_json
from flows.publish import Seen, export, gate, levels, publish, recognise_samples, variants
from flows.report import Row, effects
from flows.run import Run
from flows.stage import stage, together
from flows.start import select_data, started
from flows.story import markdown, tell
from flows.verdict import Verdict
from flows.workspace import Workspace
from models.config import Recipe


@dataclass(frozen=True)
class Report:
    """What a retraining did; model_version is None where the gate refused."""

    run: str
    data_before: str
    data_after: str
    steps: list[Row]
    evidence: list[dict[str, Any]]  # why each step stayed or went
    verdict: Verdict
    figures: list[Figure]
    model_version: int | None = None
    promoted: bool = True  # False: it was only registered and staged
    seen: list[Seen] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Report:
        """From a run.json."""
        steps, seen = [Row(**row) for row in content["steps"]], [Seen(**each) for each in content["seen"]]
        shown = [Figure(**figure) for figure in content.get("figures", ())]
        read = {"steps": steps, "verdict": Verdict.of(content["verdict"]), "figures": shown, "seen": seen}
        return cls(**{**content, **read})


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

    proofs, shown = evidence(run, balanced, weights, looks), figures(data, balanced, graph)
    report = record(run, Report(run.id, delivered.name, data.name, steps, proofs, verdict, shown))

    return released(run, data, graph, report, promote=promote)


def released(run: Run, data: Path, graph: Path, report: Report, *, promote: bool) -> Report:
    """What becomes of a judged graph: published and asked, or refused.

    Raises:
        GateRefused: what serves goes on.
    """
    if not report.verdict.may_serve:
        raise GateRefused(list(report.verdict.reasons))
    if not promote:
        version = publish(run, data, graph, report.verdict, promote=False)
        serves = ModelVersions(Ledger(run.workspace.root)).serving() == version  # it did before
        return record(run, replace(report, model_version=version, promoted=serves))
    with endpoint(run.workspace):
        version = publish(run, data, graph, report.verdict)
        seen = recognise_samples(run, data)
    return record(run, replace(report, model_version=version, promoted=True, seen=seen))


@stage("record")
def record(run: Run, report: Report) -> Report:
    """Writes what the run did, run.json for programs and report.md for people; Prefect is told too, once it is decided."""
    (run.folder / "run.json").write_text(to_json(asdict(report)), encoding="utf-8")
    (run.folder / "report.md").write_text(markdown(report), encoding="utf-8")
    tell(report)
    return report
