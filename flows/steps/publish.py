"""Publication of a judged graph: register it, promote it, ask the endpoint about a few photos, complete the report."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from durable import sha256
from flows.endpoint.promotion import register, register_and_promote
from flows.endpoint.server import endpoint
from flows.errors import GateRefused
from flows.gate.verdict import Verdict
from flows.registry.card import facts
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions, named
from flows.report.run_report import NO_PRODUCT, Report, SampleAnswer
from flows.run.run import Run
from flows.run.step import step
from flows.steps.clean import select_cleaned
from flows.steps.report import write_report
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder, Exported
from models.data.manifest import read_manifest
from models.data.samplers import spread_over_classes
from serving import Recognizer

log = logging.getLogger("cleanshelf")


@step("publish")
def publish(run: Run, data: DataFolder, graph: Exported, verdict: Verdict, *, promote: bool = True) -> int:
    """Registers the graph and promotes it once the server repeats its golden answers. Returns its version number.

    The current model is not published twice, unless the override differs. A killed publication resumes with its number.

    Args:
        promote: False only registers the graph; `cleanshelf promote` does the rest.

    Raises:
        GateRefused: the verdict refuses, is about other bytes, or compared the graph with a model that is no longer current.
    """
    file = graph / "model.onnx"
    if not verdict.may_serve:
        raise GateRefused(list(verdict.reasons))
    if verdict.graph_sha256 != sha256(file):
        raise GateRefused([f"{file} changed after it was judged; `cleanshelf publish {run.id}` judges it again"])
    models = ModelVersions(Ledger(run.workspace.root))
    with run.workspace.lock("publish", name="serving"):
        serving = models.current()
        current = {} if serving is None else models.lineage(serving)
        override = verdict.override and asdict(verdict.override)
        is_current = current.get("graph_sha256") == verdict.graph_sha256
        if is_current and override in (None, current.get("override")):
            log.info("publish: this graph is already serving, as model version %d", serving)
            return int(current["version"])
        if serving != verdict.against and not is_current:
            now = f"judged against {named(verdict.against)}, but {named(serving)} serves now"
            raise GateRefused([f"{now}; `cleanshelf publish {run.id}` judges it again"])
        lineage = describe(run, graph, verdict, parent=serving)
        labels, golden = read_manifest(data).classes, np.load(graph / "golden.npy")
        publication = register_and_promote if promote else register
        return publication(run.workspace, file, lineage=lineage, labels=labels, golden=golden)


def describe(run: Run, graph: Exported, verdict: Verdict, *, parent: int | None) -> dict[str, Any]:
    """The lineage of a model version: the metadata of its graph, its run and parent, and the verdict."""
    return {
        **facts(graph / "model.onnx"),
        "run": run.id,
        "parent": parent,
        "graph_sha256": verdict.graph_sha256,
        "verdict": list(verdict.reasons),
        "override": verdict.override and asdict(verdict.override),
    }


@step("recognise samples")
def recognise_samples(run: Run, data: DataFolder, count: int = 6) -> list[SampleAnswer]:
    """Answers of the endpoint to a few test photos, spread over the classes."""
    manifest = read_manifest(data)
    rows = np.flatnonzero((manifest.split == "test") & manifest.kept)
    chosen = spread_over_classes(rows, manifest.target[rows], count=count)
    with endpoint(run.workspace) as access, Recognizer(access, labels=repository(run.workspace).labels) as recognizer:
        answers = recognizer.recognise([manifest.read_photo(int(row)) for row in chosen])
    samples = []
    for row, answer in zip(chosen, answers, strict=True):
        label, probability = answer.best or NO_PRODUCT
        photo, truth = str(manifest.id[row]), str(manifest.label[row])
        samples.append(SampleAnswer(photo, truth, label, probability, answer.model_version or 0))
    return samples


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def publish_or_refuse(run: Run, data: DataFolder, graph: Exported, report: Report, *, promote: bool) -> Report:
    """Publishes a judged graph, selects the data version that it learnt from, and asks the endpoint about sample photos.

    Returns the completed report.

    Raises:
        GateRefused: the verdict refuses; the current model keeps serving, and the selected data version stays.
    """
    if not report.verdict.may_serve:
        raise GateRefused(list(report.verdict.reasons), report)
    if not promote:
        version = publish(run, data, graph, report.verdict, promote=False)
        was_current = ModelVersions(Ledger(run.workspace.root)).current() == version
        return write_report(run, replace(report, model_version=version, promoted=was_current), data)
    with endpoint(run.workspace):
        version = publish(run, data, graph, report.verdict)
        selection = select_cleaned(run.workspace, report.data_after, run=run.id)
        answers = recognise_samples(run, data)
    done = replace(report, model_version=version, promoted=True, seen=answers, selection=selection)
    return write_report(run, done, data)
