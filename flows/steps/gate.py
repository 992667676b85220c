"""Judges an exported graph against the current model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from durable import sha256
from flows.gate.gates import Decided, GateInput, judge
from flows.gate.verdict import Verdict
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.run.measure import measure_graph, read_answers, time_graphs
from flows.run.run import Run
from flows.run.step import step
from flows.steps.publish import log, read_json
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder, Exported
from models.data.manifest import FLAGGED, OUTSIDE, Manifest, read_manifest
from serving.signature import Signature


@step("gate")
def gate(run: Run, data: DataFolder, graph: Exported, *, despite: str = "") -> Verdict:
    """Whether the graph may be served, judged against the model now serving on the same test photos: verdict.json.

    despite: why it is to serve even if it is refused; that is recorded with the name of the user.
    """
    ledger, file, settings = Ledger(run.workspace.root), graph / "model.onnx", run.recipe.gate
    serving = ModelVersions(ledger).current()
    now = None if serving is None else intact_graph(run.workspace, serving)
    manifest = read_manifest(data)
    evidence = GateInput(
        parity=read_json(graph / "parity.json"),
        answers=read_answers(manifest, graph, None if now is None else measure_graph(run, data, now)),
        decided=decided(manifest),
        ms=time_graphs(run, [file, *([now] if now else [])]) if settings.latency_ms else None,
        variant=variant_of(file),
    )
    verdict = judge(evidence, settings=settings, graph_sha256=sha256(file), against=serving)
    if despite:
        verdict = verdict.despite(despite, by=ledger.user())
    (run.folder / "verdict.json").write_text(json.dumps(asdict(verdict), indent=1), encoding="utf-8")
    log.info("gate: %s: %s", "passed" if verdict.passed else "REFUSED", "; ".join(verdict.reasons))
    if verdict.override:
        log.warning("gate: overridden by %s: %s", verdict.override.by, verdict.override.reason)
    return verdict


def intact_graph(workspace: Workspace, version: int) -> Path:
    """The graph of a version; a damaged one would be easy to beat.

    Raises:
        CorruptVersion: a file of the version is not what was staged.
    """
    versions = repository(workspace)
    versions.verify(version)
    return versions.path(version) / "model.onnx"


def decided(manifest: Manifest) -> Decided:
    """What cleaning decided on the training photos; those that ingestion left out do not count."""
    counts = (manifest.split == "train") & ~np.isin(manifest.decision, OUTSIDE)
    away = counts & np.isin(manifest.decision, FLAGGED)
    given, gone = (np.bincount(manifest.given_target[rows], minlength=len(manifest.classes)) for rows in (counts, away))
    return Decided(np.array(manifest.classes), given, gone)


def variant_of(graph: Path) -> dict[str, Any] | None:
    """What was measured of a graph of a lower precision; None of a float32 graph."""
    told = Signature.read(graph).metadata.get("variant")
    return None if told is None else json.loads(told)
