"""Adds a product to the current model, or removes one, without training: its ONNX file is patched, judged and promoted.

These are plain functions, not flows: they take seconds, and have to work during a training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from durable import sha256
from flows.data.versions import DataVersions
from flows.endpoint.promotion import register_and_promote
from flows.errors import GateRefused, InputError, PurgedVersion, UnknownVersion, WorkspaceBusy
from flows.gate.gates import GateInput, Hits, judge
from flows.gate.verdict import Verdict
from flows.registry.card import facts
from flows.registry.history import model_lineage
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.run.measure import measure_graph, measured_before
from flows.run.run import ResultCache
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder
from models.data.manifest import read_manifest
from models.data.positions import positions
from models.evaluation.accuracy import accuracy, thirds
from models.export.enrol import agreement, enrol, first_labels, labels_of, leaving_product, new_product, withdraw
from models.export.features import ROWS, answers_from, in_classes_of
from models.export.patch import stamp
from models.export.session import decisive
from models.recipe.config import Gate, Recipe, from_dict
from models.recipe.tables import set_key
from pixels import BadPhoto, decode, read, to_square
from serving.signature import Signature

log = logging.getLogger("cleanshelf")
GOLDEN_PHOTOS = 4


@dataclass(frozen=True)
class Change:
    """The change of version `parent`; model_version is None after a dry run."""

    step: str  # "enrol" or "withdraw"
    label: str
    parent: int
    products: int  # number of products of the changed graph
    photos: list[str] = field(default_factory=list)  # sha256 of the files of the enrolled photos
    reasons: tuple[str, ...] = ()  # findings of the gate
    model_version: int | None = None


@dataclass(frozen=True)
class Photo:
    """A photo of the product, squeezed to (S, S, 3) uint8."""

    path: Path
    sha256: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Patch:
    """A patched graph that has not been judged yet."""

    step: str  # "enrol" or "withdraw"
    label: str
    lineage: dict[str, Any]  # of the current model
    former: Path  # graph of the current model
    graph: Path
    photos: list[Photo]

    @property
    def parent(self) -> int:
        """The version of the current model."""
        return int(self.lineage["version"])

    @property
    def title(self) -> str:
        """Title of the change, for the metadata of the graph."""
        return f"{self.step} {self.label}"

    @property
    def labels(self) -> list[str]:
        """Labels of the patched graph."""
        return labels_of(self.graph)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of each photo's file."""
        return [photo.sha256 for photo in self.photos]

    @property
    def larger_and_smaller(self) -> tuple[Path, Path]:
        """The graph with the product, and the graph without it, whose products must not suffer."""
        return (self.graph, self.former) if self.step == "enrol" else (self.former, self.graph)


def enrol_product(
    workspace: Workspace, label: str, images: Sequence[Path], *, overrides: Sequence[str] = (), dry_run: bool = False
) -> Change:
    """Adds a product to the current model, from a few photos of it.

    Args:
        overrides: keys of [gate] in the recipe that the model was trained with, such as "gate.enrol=0.02".
        dry_run: patch the graph and ask it about the photos, but neither measure nor promote it.

    Raises:
        EnrolmentError: the label exists already or cannot name a product, or the graph cannot be patched.
        BadPhoto: some files are not photos; the message names all of them.
        GateRefused: the patched graph does not recognise the photos, or is worse for the other products.
    """
    with _current_model(workspace) as (lineage, former, folder):
        gate = _gate(workspace, lineage, overrides)
        label = new_product(label, labels_of(former))
        photos = read_photos(images, side=Signature.read(former).size)
        patch = Patch("enrol", label, lineage, former, folder / "model.onnx", photos)
        enrol(former, _stacked(photos), label=label, sha256=patch.hashes, out=patch.graph)
        if missed := _missed(patch):
            raise GateRefused([missed])
        return _change(patch) if dry_run else _judge_and_promote(workspace, patch, gate)


def withdraw_product(
    workspace: Workspace, label: str, *, overrides: Sequence[str] = (), dry_run: bool = False
) -> Change:
    """Removes a product from the current model, whether it was enrolled or trained; otherwise like `enrol_product`."""
    with _current_model(workspace) as (lineage, former, folder):
        gate = _gate(workspace, lineage, overrides)
        label = leaving_product(label, labels_of(former))
        patch = Patch("withdraw", label, lineage, former, folder / "model.onnx", [])
        withdraw(former, label=label, out=patch.graph)
        return _change(patch) if dry_run else _judge_and_promote(workspace, patch, gate)


def read_photos(images: Sequence[Path], *, side: int) -> list[Photo]:
    """The photos in these files, squeezed to side x side px; files with the same content count once.

    Raises:
        BadPhoto: some files are not photos; the message names all of them.
    """
    found: dict[str, Photo] = {}
    bad = []
    for path in images:
        try:
            data = read(path)
            digest = hashlib.sha256(data).hexdigest()
            found[digest] = Photo(path, digest, to_square(decode(data), side))
        except (BadPhoto, OSError) as error:
            bad.append(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
    if bad:
        pronoun = "it" if len(bad) == 1 else "them"
        raise BadPhoto(f"{'; '.join(bad)}; leave {pronoun} out or replace {pronoun}")
    return list(found.values())


@contextmanager
def _current_model(workspace: Workspace) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """The lineage of the current model, its verified graph, and a temporary folder."""
    lineage = model_lineage(workspace)
    versions = repository(workspace)
    versions.verify(lineage["version"])
    with tempfile.TemporaryDirectory(prefix="cleanshelf-") as folder:
        yield lineage, versions.path(lineage["version"]) / "model.onnx", Path(folder)


def _stacked(photos: Sequence[Photo]) -> NDArray[np.uint8]:
    return np.stack([photo.pixels for photo in photos])


def _missed(patch: Patch) -> str:
    """A message that names the product's photos that the patched graph does not recognise, or ""."""
    answers = zip(patch.photos, first_labels(patch.graph, _stacked(patch.photos)), strict=True)
    wrong = [f"{photo.path} is {label or 'unknown'}" for photo, label in answers if label != patch.label]
    return f"own photos would not be recognised: {', '.join(wrong)}; leave them out" if wrong else ""


def _change(patch: Patch) -> Change:
    return Change(patch.step, patch.label, patch.parent, len(patch.labels), patch.hashes)


def _gate(workspace: Workspace, lineage: dict[str, Any], overrides: Sequence[str]) -> Gate:
    """The gate of the model's recipe; almost any new product costs the others a little, so it has a bound of its own."""
    gate = recipe_of(workspace, lineage["run"], overrides).gate
    return replace(gate, mean_class=gate.enrol)


def _judge_and_promote(workspace: Workspace, patch: Patch, gate: Gate) -> Change:
    golden = np.concatenate(
        [repository(workspace).golden(patch.parent).image, *(each.pixels[None] for each in patch.photos)]
    )
    verdict = _judge(workspace, patch, golden, settings=gate)
    if not verdict.passed:
        raise GateRefused([*verdict.reasons, "try other photos, allow more with --set gate.enrol=0.02, or retrain"])
    lineage = describe(patch, verdict)
    with workspace.lock(patch.step, name="serving"):
        if ModelVersions(Ledger(workspace.root)).current() != patch.parent:
            raise WorkspaceBusy(f"version {patch.parent} is no longer the current model; run the command again")
        number = register_and_promote(
            workspace,
            patch.graph,
            lineage=lineage,
            labels=patch.labels,
            golden=decisive(patch.graph, golden)[:GOLDEN_PHOTOS],
        )
    return replace(_change(patch), reasons=verdict.reasons, model_version=number)


def _judge(workspace: Workspace, patch: Patch, photos: NDArray[np.uint8], *, settings: Gate) -> Verdict:
    """Verdict on a patch: the graphs differ in one product only, and the others do not suffer. Stamps the figures."""
    larger, smaller = patch.larger_and_smaller
    reference = f"version {patch.parent}"
    parity = asdict(agreement(larger, smaller, label=patch.label, photos=photos)) | {"reference": reference}
    metrics, hits = _answers(workspace, patch)
    stamp(
        patch.graph,
        {
            "made_from": sha256(patch.former),
            "step": patch.title,
            "metrics": json.dumps(metrics),
            "parity": json.dumps(parity),
        },
    )
    return judge(
        GateInput(parity, hits, reference=reference),
        settings=settings,
        graph_sha256=sha256(patch.graph),
        against=patch.parent,
    )


def _answers(workspace: Workspace, patch: Patch) -> tuple[dict[str, float | None], Hits]:
    """Accuracy of the patched graph, and the hits of both graphs, on test photos whose label both know.

    Both are computed from the inputs of the classifiers that were kept when the model was measured for its publication, so
    no test photo goes through a network again. A model without them is measured once.
    """
    data, results = _data_of(workspace, patch.lineage), ResultCache(workspace)
    found = measured_before(results, data, graphs_with_these_backbones(workspace, patch.lineage))
    if found is None:
        log.info(
            "%s: version %d is measured on the test photos now, once; later changes reuse it", patch.step, patch.parent
        )
        found = measure_graph(results, data, patch.former)
    manifest, rows = read_manifest(data), np.load(found / ROWS)
    known = positions(manifest.label[rows], labels_of(patch.larger_and_smaller[1])) >= 0
    before, after = (
        in_classes_of(manifest.classes, graph, answers_from(found, graph))[known]
        for graph in (patch.former, patch.graph)
    )
    target, counts = manifest.target[rows][known], manifest.train_counts()
    counted = target >= 0  # labels without training photos do not count
    hits = Hits(
        photo=manifest.id[rows][known][counted],
        target=target[counted],
        new=(after[:, 0] == target)[counted],
        serving=(before[:, 0] == target)[counted],
        labels=np.array(manifest.classes),
        third=thirds(counts),
    )
    return accuracy(after, target, train_counts=counts).to_dict(), hits


def _data_of(workspace: Workspace, lineage: dict[str, Any]) -> DataFolder:
    """The data version that the model was judged on, or the selected one if that is gone."""
    versions = DataVersions(workspace)
    try:
        return DataFolder(versions.materialise(lineage["data_version"]))
    except (UnknownVersion, PurgedVersion):
        return DataFolder(versions.materialise("selected"))


def graphs_with_these_backbones(workspace: Workspace, lineage: dict[str, Any]) -> Iterator[str]:
    """SHA-256 of the model's graph, and of those that it was patched from."""
    made_from = {
        entry.lineage.get("graph_sha256"): entry.lineage.get("made_from")
        for entry in ModelVersions(Ledger(workspace.root)).log()
    }
    graph = lineage.get("graph_sha256")
    while graph:
        yield graph
        graph = made_from.pop(graph, None)


def recipe_of(workspace: Workspace, run: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run, or the default recipe if that is gone, with overrides of its gate.

    Raises:
        InputError: an override is not a key of [gate].
    """
    path = workspace.runs / run / "recipe.json"
    tables = json.loads(path.read_bytes()) if path.exists() else {"name": "default"}
    for override in overrides:
        if not override.strip().startswith("gate."):
            raise InputError(f"--set {override}: nothing is trained here, so only keys of [gate] can be set")
        set_key(tables, override)
    return from_dict(tables)


def describe(patch: Patch, verdict: Verdict) -> dict[str, Any]:
    """The lineage of the patched version: the metadata of its file, its photos, and the verdict."""
    return {
        **facts(patch.graph),
        "run": patch.lineage["run"],
        "parent": patch.parent,
        "photos": patch.hashes,
        "graph_sha256": verdict.graph_sha256,
        "verdict": list(verdict.reasons),
    }
