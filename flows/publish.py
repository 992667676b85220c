"""From networks to an endpoint: export one graph, judge it, publish it, ask it."""

from __future__ import annotations

import json
import logging
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.card import facts
from flows.data_version import DataVersions
from flows.endpoint import endpoint, repository
from flows.errors import GateRefused
from flows.gates import Decided, Evidence, judge
from flows.history import descent
from flows.launch import run_child
from flows.learn import calibrate
from flows.ledger import Ledger
from flows.model_version import ModelVersions
from flows.release import measure_graph, put, read_answers, release, time_graphs
from flows.run import Run, code_hash
from flows.settings import REPOSITORY
from flows.stage import stage
from flows.verdict import Verdict
from flows.workspace import Workspace
from models.config import digest
from models.data.manifest import DISBELIEVED, OUTSIDE, Manifest, read_manifest
from serving import Recognizer
from serving.durable import sha256
from serving.model_config import Signature

log = logging.getLogger("cleanshelf")
REFUSED = ("", 0.0)  # what a graph with export.reject says of a photo that it takes for no product


@stage("export")
def export(run: Run, data: Path, members: list[Path], weights: Path, looks: Path, calibrated: Path) -> Path:
    """The one graph with its card, proved equal to torch and measured: model.onnx, accuracy.json, parity.json."""
    made_from = (*members, weights, looks, calibrated)
    card = {
        "data_version": data.name,
        "data_parents": json.dumps(descent(data.name, DataVersions(run.workspace).log())[1:]),
        "stages": json.dumps({folder.name: read_json(folder / "done.json") for folder in made_from}),
        "commit": commit(),
        "code_hash": code_hash(),
        "config_hash": digest(run.recipe),
        "recipe": run.recipe.name,
        "produced_by": "cleanshelf",
    }

    def work(out: Path) -> None:
        (out / "card.json").write_text(json.dumps(card), encoding="utf-8")
        networks = [folder / "network.pt" for folder in members]
        arguments = ["--data", data, "--recipe", run.recipe_file, "--card", out / "card.json", "--out", out]
        arguments += ["--ensemble", weights / "ensemble.json", "--views", looks / "views.json"]
        arguments += ["--calibration", calibrated / "calibration.json"]
        run_child("models.export", [*arguments, "--networks", *networks], say=lambda line: log.info("export: %s", line))

    names = [folder.name for folder in made_from]
    return run.stage("export", data.name, names, run.recipe.export, digest(run.recipe), work=work)


@stage("look in {crops} crops")
def in_crops(run: Run, looks: Path, crops: int) -> Path:
    """The way to look at a photo with another number of crops, for which nothing speaks yet: views.json."""
    chosen = read_json(looks / "views.json")

    def work(out: Path) -> None:
        content = {"crops": crops, "enlarge": chosen["enlarge"], "gain": None, "tried": []}
        (out / "views.json").write_text(json.dumps(content, indent=1), encoding="utf-8")

    return run.stage(f"look-{crops}", chosen["enlarge"], crops, work=work)


def levels(run: Run, data: Path, members: list[Path], weights: Path, looks: Path) -> list[Path]:
    """The same networks exported with every number of crops but the chosen one, if the recipe asks for variants."""
    chosen = read_json(looks / "views.json")["crops"]
    others = [in_crops(run, looks, crops) for crops in run.recipe.export.levels if crops != chosen]
    calibrated = [calibrate(run, data, members, weights, look) for look in others]
    return [export(run, data, members, weights, *pair) for pair in zip(others, calibrated, strict=True)]


@stage("variants")
def variants(run: Run, data: Path, graph: Path, others: list[Path]) -> Path:
    """What is to be published: the export, or its variant in the recipe's precision where that is offered; and variants.json."""
    settings = run.recipe.export
    if not settings.precisions:
        return graph

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--graph", graph, "--out", out, "--levels", *others]
        run_child("models.export.variants", arguments, say=lambda line: log.info("variants: %s", line))

    names = [folder.name for folder in (graph, *others)]
    return run.stage("variants", data.name, names, settings, run.recipe.proof.file, work=work)


@stage("gate")
def gate(run: Run, data: Path, graph: Path, *, despite: str = "") -> Verdict:
    """Whether the graph may be served, judged against the model now serving on the same test photos: verdict.json.

    despite: why it is to serve even if it is refused; that is recorded with the name of the user.
    """
    ledger, file, settings = Ledger(run.workspace.root), graph / "model.onnx", run.recipe.gate
    serving = ModelVersions(ledger).serving()
    now = None if serving is None else intact_graph(run.workspace, serving)
    manifest = read_manifest(data)
    evidence = Evidence(
        parity=read_json(graph / "parity.json"),
        answers=read_answers(manifest, graph, now and measure_graph(run, data, now)),
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
    away = counts & np.isin(manifest.decision, DISBELIEVED)
    given, gone = (np.bincount(manifest.given_target[rows], minlength=len(manifest.classes)) for rows in (counts, away))
    return Decided(np.array(manifest.classes), given, gone)


def variant_of(graph: Path) -> dict[str, Any] | None:
    """What was measured of a graph of a lower precision; None of a float32 graph."""
    told = Signature.read(graph).metadata.get("variant")
    return None if told is None else json.loads(told)


@stage("publish")
def publish(run: Run, data: Path, graph: Path, verdict: Verdict, *, promote: bool = True) -> int:
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
        serving = models.serving()
        if serving is not None and models.lineage(serving)["graph_sha256"] == verdict.graph_sha256:
            log.info("publish: model version %d has exactly these bytes and serves already", serving)
            return serving
        if serving != verdict.against:
            raise GateRefused([f"judged against {named(verdict.against)}, but {named(serving)} serves now; "
                               f"`cleanshelf publish {run.id}` judges it anew"])  # fmt: skip
        lineage = describe(run, graph, verdict, parent=serving)
        step = release if promote else put
        return step(run.workspace, file, lineage=lineage, labels=read_manifest(data).classes,
                    golden=np.load(graph / "golden.npy"))  # fmt: skip


def named(version: int | None) -> str:
    """For messages."""
    return "no model" if version is None else f"model version {version}"


def describe(run: Run, graph: Path, verdict: Verdict, *, parent: int | None) -> dict[str, Any]:
    """The lineage of a model version: all that its file says of itself, and why these bytes may be served."""
    return {
        **facts(graph / "model.onnx"),
        "run": run.id,
        "parent": parent,
        "graph_sha256": verdict.graph_sha256,
        "verdict": list(verdict.reasons),
        "override": verdict.override and asdict(verdict.override),
    }


@dataclass(frozen=True)
class Seen:
    """What the endpoint said of one test photo, and what it is."""

    photo: str
    truth: str
    label: str
    probability: float
    model_version: int


@stage("recognise")
def recognise_samples(run: Run, data: Path, count: int = 6) -> list[Seen]:
    """Asks the endpoint about a few test photos, spread over the classes."""
    manifest = read_manifest(data)
    rows = np.flatnonzero((manifest.split == "test") & manifest.kept)
    rows = rows[np.argsort(manifest.target[rows], kind="stable")]
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    with endpoint(run.workspace) as access, Recognizer(access, labels=repository(run.workspace).labels) as recognizer:
        answers = recognizer.recognise([manifest.read_photo(int(row)) for row in chosen])
    return [
        Seen(str(manifest.id[row]), str(manifest.label[row]), *(answer.best or REFUSED), answer.model_version or 0)
        for row, answer in zip(chosen, answers, strict=True)
    ]


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def commit() -> str:
    """The git commit that CleanShelf itself runs from, with + where its files were changed; "" outside a clone."""
    asked = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
