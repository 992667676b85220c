"""From networks to an endpoint: export one graph, judge it, publish it, ask it."""

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
from flows.report.markdown import markdown, publish_report
from flows.report.run_report import NO_PRODUCT, Report, SampleAnswer, to_json
from flows.run.run import Run
from flows.run.step import step
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder, Exported
from models.data.manifest import read_manifest
from serving import Recognizer

log = logging.getLogger("cleanshelf")


@step("publish")
def publish(run: Run, data: DataFolder, graph: Exported, verdict: Verdict, *, promote: bool = True) -> int:
    """Stages the version, loads it beside the serving one, checks golden photos over the wire, switches; its number.

    The model that serves already is not published twice, and bytes that have a number keep it: a killed publication goes on.

    Args:
        promote: False only registers and stages it; `cleanshelf promote` does the rest.

    Raises:
        GateRefused: the verdict is no, is not about these bytes, or compared them with what does not serve any more.
    """
    file = graph / "model.onnx"
    if not verdict.may_serve:
        raise GateRefused(list(verdict.reasons))
    if verdict.graph_sha256 != sha256(file):
        raise GateRefused(["the graph changed after it was judged"])
    models = ModelVersions(Ledger(run.workspace.root))
    with run.workspace.lock("publish", name="serving"):
        serving = models.current()
        if serving is not None and models.lineage(serving)["graph_sha256"] == verdict.graph_sha256:
            log.info("publish: model version %d has exactly these bytes and serves already", serving)
            return serving
        if serving != verdict.against:
            raise GateRefused([f"judged against {named(verdict.against)}, but {named(serving)} serves now; "
                               f"`cleanshelf publish {run.id}` judges it anew"])  # fmt: skip
        lineage = describe(run, graph, verdict, parent=serving)
        step = register_and_promote if promote else register
        return step(run.workspace, file, lineage=lineage, labels=read_manifest(data).classes,
                    golden=np.load(graph / "golden.npy"))  # fmt: skip


def describe(run: Run, graph: Exported, verdict: Verdict, *, parent: int | None) -> dict[str, Any]:
    """The lineage of a model version: all that its file says of itself, and why these bytes may be served."""
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
    """Asks the endpoint about a few test photos, spread over the classes."""
    manifest = read_manifest(data)
    rows = np.flatnonzero((manifest.split == "test") & manifest.kept)
    rows = rows[np.argsort(manifest.target[rows], kind="stable")]
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    with endpoint(run.workspace) as access, Recognizer(access, labels=repository(run.workspace).labels) as recognizer:
        answers = recognizer.recognise([manifest.read_photo(int(row)) for row in chosen])
    return [
        SampleAnswer(
            str(manifest.id[row]), str(manifest.label[row]), *(answer.best or NO_PRODUCT), answer.model_version or 0
        )
        for row, answer in zip(chosen, answers, strict=True)
    ]


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def publish_or_refuse(run: Run, data: DataFolder, graph: Exported, report: Report, *, promote: bool) -> Report:
    """What becomes of a judged graph: published and asked, or refused.

    Raises:
        GateRefused: what serves goes on.
    """
    if not report.verdict.may_serve:
        raise GateRefused(list(report.verdict.reasons))
    if not promote:
        version = publish(run, data, graph, report.verdict, promote=False)
        serves = ModelVersions(Ledger(run.workspace.root)).current() == version  # it did before
        return write_report(run, replace(report, model_version=version, promoted=serves))
    with endpoint(run.workspace):
        version = publish(run, data, graph, report.verdict)
        seen = recognise_samples(run, data)
    return write_report(run, replace(report, model_version=version, promoted=True, seen=seen))


@step("write report")
def write_report(run: Run, report: Report) -> Report:
    """Writes what the run did, run.json for programs and report.md for people; Prefect is told too, once it is decided."""
    (run.folder / "run.json").write_text(to_json(asdict(report)), encoding="utf-8")
    (run.folder / "report.md").write_text(markdown(report), encoding="utf-8")
    publish_report(report)
    return report
