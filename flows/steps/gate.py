"""Judges an exported graph against the current model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from durable import sha256
from flows.gate.gates import GateInput, LeftOut, judge
from flows.gate.verdict import Verdict
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.run.measure import compare_graph, read_answers, time_graphs
from flows.run.run import ResultCache, Run
from flows.run.step import step
from flows.steps.publish import log, read_json
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder, Exported
from models.data.manifest import FLAGGED, OUTSIDE, Manifest, read_manifest
from serving.signature import Signature


@step("gate")
def gate(run: Run, data: DataFolder, graph: Exported, *, despite: str = "") -> Verdict:
    """The verdict on the graph, compared with the current model on the same test photos; written to verdict.json.

    despite: the reason to serve the graph even if it is refused; it is recorded with the name of the user.
    """
    ledger, file, settings = Ledger(run.workspace.root), graph / "model.onnx", run.recipe.gate
    results, serving = ResultCache(run.workspace), ModelVersions(ledger).current()
    current = None if serving is None else intact_graph(run.workspace, serving)
    manifest = read_manifest(data)
    evidence = GateInput(
        parity=read_json(graph / "parity.json"),
        answers=read_answers(manifest, graph, None if current is None else compare_graph(results, data, current)),
        cleaning=left_out(manifest),
        ms=time_graphs(results, [file, *([current] if current else [])]) if settings.latency_ms else None,
        variant=variant_of(file),
    )
    verdict = judge(evidence, settings=settings, graph_sha256=sha256(file), against=serving)
    return overridden(run, verdict, despite) if despite else write_verdict(run, verdict)


def overridden(run: Run, verdict: Verdict, reason: str) -> Verdict:
    """The verdict with an override by the present user, if it refuses the graph; written to verdict.json."""
    if verdict.passed:
        log.info("gate: passed, so the reason of --despite is not needed, and it is not recorded")
    return write_verdict(run, verdict.despite(reason, by=Ledger(run.workspace.root).user()))


def write_verdict(run: Run, verdict: Verdict) -> Verdict:
    """Writes verdict.json of the run and logs the verdict."""
    (run.folder / "verdict.json").write_text(json.dumps(asdict(verdict), indent=1), encoding="utf-8")
    log.info("gate: %s: %s", "passed" if verdict.passed else "REFUSED", "; ".join(verdict.reasons))
    if verdict.override:
        log.warning("gate: overridden by %s: %s", verdict.override.by, verdict.override.reason)
    return verdict


def intact_graph(workspace: Workspace, version: int) -> Path:
    """The graph of a model version, verified: a damaged one would be easy to beat.

    Raises:
        CorruptVersion: a file of the version is not what was written.
    """
    versions = repository(workspace)
    versions.verify(version)
    return versions.path(version) / "model.onnx"


def left_out(manifest: Manifest) -> LeftOut:
    """The training photos that cleaning dropped or moved to another class; photos that ingestion left out do not count.

    A photo that is only downweighted is still learnt.
    """
    counted = (manifest.split == "train") & ~manifest.has_decision(OUTSIDE)
    away = np.flatnonzero(counted & manifest.has_decision(FLAGGED) & (manifest.decision != "doubted"))
    away = away[np.argsort(manifest.score[away], kind="stable")]
    given = np.bincount(manifest.given_target[counted], minlength=len(manifest.classes))
    return LeftOut(np.array(manifest.classes), given, manifest.id[away], manifest.given_target[away])


def variant_of(graph: Path) -> dict[str, Any] | None:
    """The measurements of a graph of a lower precision; None for a float32 graph."""
    variant = Signature.read(graph).metadata.get("variant")
    return None if variant is None else json.loads(variant)
