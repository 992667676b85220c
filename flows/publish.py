"""The flow that publishes the graph of an earlier run which was killed before that, only registered, or refused.

It is a Prefect flow where a server is there to report to, as an ingestion is (flows.ingest).
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from durable import sha256
from flows.data.versions import DataVersions
from flows.errors import InputError
from flows.gate.verdict import Verdict
from flows.orchestrator.events import standing_server
from flows.registry.versions import ModelVersions
from flows.report.figures import photos_to_look_at
from flows.report.run_report import Report
from flows.run.record import recorded
from flows.run.run import Run, is_finished
from flows.run.step import as_flow, step
from flows.steps.clean import select_cleaned
from flows.steps.gate import gate, intact_graph, overridden
from flows.steps.publish import publish_or_refuse
from flows.steps.report import write_report
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder, Exported
from models.recipe.config import from_dict

log = logging.getLogger("cleanshelf")


def publish_run(workspace: Workspace, name: str, *, despite: str | None = None, promote: bool = True) -> Report:
    """Judges the graph of a run against the current model, publishes it, and selects the data version that it learnt from.

    Args:
        name: the name of the run, or its first characters.
        despite: the reason to publish it even if a gate refuses; recorded with the model version.
        promote: False only registers it.

    Raises:
        InputError: there is no such run, its graph is gone, or `despite` is blank.
        GateRefused: a gate refuses; only verdict.json of the run was changed.
    """
    if despite is not None and not despite.strip():
        raise InputError(
            "--despite: the reason is blank; say in a few words why the model should serve despite the gate"
        )
    report, run = earlier(workspace, name)
    with workspace.lock("publish"):
        versions = DataVersions(workspace)
        versions.repair(staging=False)
        versions.resolve(report.data_after)
        graph = find_graph(run, report.verdict.graph_sha256)
        reason, current = " ".join((despite or "").split()), current_lineage(workspace, report)
        if current and is_told(run, current, reason):
            return complete(run, report, current)
        with recorded(run.folder, "publish"):
            if not standing_server(workspace):
                return publication(run, report, graph, current, despite=reason, promote=promote)
            from flows.orchestrator.server import orchestrated  # imports Prefect, now that everything is here

            with orchestrated(workspace):
                return as_flow(publication, "publish")(run, report, graph, current, despite=reason, promote=promote)


def earlier(workspace: Workspace, name: str) -> tuple[Report, Run]:
    """The run whose name starts with `name`, and its report.

    Raises:
        InputError: no run matches, or several do, or it was not judged, or its files are damaged.
    """
    found = [folder for folder in sorted(workspace.runs.glob("*-*")) if name and folder.name.startswith(name)]
    if len(found) != 1:
        recent = ", ".join(path.parent.name for path in sorted(workspace.runs.glob("*/run.json"))[-8:])
        what = "matches several runs" if found else "matches no run"
        raise InputError(f"{name!r} {what}; there are: {recent or 'none yet; run `cleanshelf retrain` first'}")
    try:
        report = Report.of(json.loads((found[0] / "run.json").read_bytes()))
        recipe = from_dict(json.loads((found[0] / "recipe.json").read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        what = "ended before its graph was judged, or its run.json or recipe.json is damaged"
        way_out = "run `cleanshelf retrain` with its recipe, which continues where it ended"
        raise InputError(f"run {found[0].name} {what}; {way_out}") from None
    return report, Run(workspace, recipe, id=found[0].name)


def publication(
    run: Run, report: Report, graph: Exported, current: dict[str, Any] | None, *, despite: str, promote: bool
) -> Report:
    """Fetches the data of the run, judges its graph again and publishes it.

    current: lineage of the current model if its graph is this one.
    """
    if current:
        return override_again(run, report, graph, current, despite=despite, promote=promote)
    data = fetch_data(run, report.data_after)
    verdict = gate(run, data, graph, despite=despite)
    judged = replace(report, verdict=verdict, look_at=photos_to_look_at(data, verdict))
    return publish_or_refuse(run, data, graph, judged, promote=promote)


def override_again(
    run: Run, report: Report, graph: Exported, current: dict[str, Any], *, despite: str, promote: bool
) -> Report:
    """Publishes the graph of the current model, which an override let in, as a version of its own with another override.

    It is not judged again: compared with itself, it would pass.
    """
    intact_graph(run.workspace, current["version"])
    verdict = overridden(run, verdict_of(run, report, current), despite)
    data = fetch_data(run, report.data_after)
    return publish_or_refuse(run, data, graph, replace(report, verdict=verdict), promote=promote)


def current_lineage(workspace: Workspace, report: Report) -> dict[str, Any] | None:
    """The lineage of the current model if its graph is that of the run, else None."""
    models = ModelVersions(Ledger(workspace.root))
    current = models.current()
    lineage = None if current is None else models.lineage(current)
    return lineage if lineage and lineage["graph_sha256"] == report.verdict.graph_sha256 else None


def is_told(run: Run, current: dict[str, Any], reason: str) -> bool:
    """True if the registry has nothing to add for the current model: no reason, none needed, or this one by this user."""
    override = current.get("override")
    if not reason or not override:
        return True
    return (override["reason"], override["by"]) == (reason, Ledger(run.workspace.root).user())


def complete(run: Run, report: Report, current: dict[str, Any]) -> Report:
    """The report of a run whose graph is the current model, as the registry has it; written if a kill left it incomplete."""
    intact_graph(run.workspace, current["version"])
    verdict = verdict_of(run, report, current)
    log.info("publish: model version %d is the current model already; nothing was judged again", current["version"])
    selection = select_cleaned(run.workspace, report.data_after, run=run.id)
    told = replace(report, model_version=current["version"], promoted=True, verdict=verdict, selection=selection)
    return told if report.model_version and report.promoted else write_report(run, told)


def verdict_of(run: Run, report: Report, lineage: dict[str, Any]) -> Verdict:
    """The verdict that a model version was registered with: the run's with all findings, or what the lineage has of it."""
    found = [report.verdict]
    with suppress(OSError, ValueError, KeyError, TypeError):
        found.append(Verdict.of(json.loads((run.folder / "verdict.json").read_bytes())))
    return next((each for each in found if each.is_that_of(lineage)), Verdict.of_lineage(lineage))


@step("fetch data version")
def fetch_data(run: Run, version: str) -> DataFolder:
    """The folder of the data version that the graph was trained and judged on."""
    return DataFolder(DataVersions(run.workspace).materialise(version))


def find_graph(run: Run, graph_sha256: str) -> Exported:
    """The cached result that holds this graph, every file verified.

    Raises:
        InputError: it is gone, or one of its files was changed.
    """
    for graph in sorted(run.workspace.runs.glob("stages/*/model.onnx")):
        if sha256(graph) == graph_sha256 and is_finished(graph.parent):
            return Exported(graph.parent)
    way_out = "run `cleanshelf retrain` with its recipe, which makes it again"
    raise InputError(f"the graph of run {run.id} is no longer in {run.workspace.runs / 'stages'}; {way_out}")
