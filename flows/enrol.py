"""A product more, or one less, in the model that serves: the ONNX file is patched, judged and switched in. Nothing is trained.

Plain functions, not flows: they take seconds beside the test photos, and have to work while a training is running.
"""

from __future__ import annotations

import json
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
from flows.errors import GateRefused, InputError, WorkspaceBusy
from flows.gate.gates import GateInput, judge
from flows.gate.verdict import Verdict
from flows.registry.card import facts
from flows.registry.history import model_lineage
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.run.measure import measure_graph, read_answers
from flows.run.run import Run
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from flows.workspace.results import DataFolder
from models.data.manifest import read_manifest
from models.export.enrol import agreement, enrol, first_labels, withdraw
from models.export.patch import read_metadata, stamp
from models.export.session import decisive
from models.recipe.config import Recipe, from_dict
from models.recipe.tables import set_key
from pixels import BadPhoto, decode, to_square
from serving.signature import Signature

GOLDEN_PHOTOS = 4


@dataclass(frozen=True)
class Change:
    """What was done to version `parent`, or would be: then there is no model_version."""

    step: str  # "enrol" or "withdraw"
    label: str
    parent: int
    products: int  # that are told apart now
    photos: list[str] = field(default_factory=list)  # sha256 of their files
    reasons: tuple[str, ...] = ()  # of the gate
    model_version: int | None = None


@dataclass(frozen=True)
class Photo:
    """A file of the product, squeezed to (S, S, 3) uint8."""

    path: Path
    sha256: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Patch:
    """A patched graph before it is judged, and the one that it was made from with the lineage of its version."""

    step: str
    label: str
    lineage: dict[str, Any]
    former: Path
    graph: Path
    photos: list[Photo]

    @property
    def parent(self) -> int:
        return int(self.lineage["version"])

    @property
    def title(self) -> str:
        """Of what is done."""
        return f"{self.step} {self.label}"

    @property
    def labels(self) -> list[str]:
        return list(json.loads(read_metadata(self.graph)["labels"]))

    @property
    def hashes(self) -> list[str]:
        return [photo.sha256 for photo in self.photos]

    @property
    def larger_and_smaller(self) -> tuple[Path, Path]:
        """The file that knows the label, and the one whose products are all the others, which may not suffer."""
        return (self.graph, self.former) if self.step == "enrol" else (self.former, self.graph)


def enrol_product(
    workspace: Workspace, label: str, images: Sequence[Path], *, overrides: Sequence[str] = (), rehearse: bool = False
) -> Change:
    """Adds a product to the model that serves, from a few photos of it.

    Args:
        overrides: of the gate of the recipe that the model was trained by, such as "gate.enrol=0.02".
        rehearse: patch the file and ask it about the photos; neither measure nor publish.

    Raises:
        EnrolmentError: the label exists or is none, or the graph cannot be patched.
        BadPhoto: names every file that is no photo.
        GateRefused: the patched graph misses the photos, or is worse for the other products; it is not served.
    """
    with _serving(workspace) as (lineage, former, folder):
        photos = read_photos(images, side=Signature.read(former).size)
        patch = Patch("enrol", label, lineage, former, folder / "model.onnx", photos)
        enrol(former, _stacked(photos), label=label, sha256=patch.hashes, out=patch.graph)
        if missed := _missed(patch):
            raise GateRefused([missed])
        return _rehearsed(patch) if rehearse else _judge_and_promote(workspace, patch, overrides)


def withdraw_product(
    workspace: Workspace, label: str, *, overrides: Sequence[str] = (), rehearse: bool = False
) -> Change:
    """Takes a product out of the model that serves, whether it was enrolled or trained; else as enrol_product."""
    with _serving(workspace) as (lineage, former, folder):
        patch = Patch("withdraw", label, lineage, former, folder / "model.onnx", [])
        withdraw(former, label=label, out=patch.graph)
        return _rehearsed(patch) if rehearse else _judge_and_promote(workspace, patch, overrides)


def read_photos(images: Sequence[Path], *, side: int) -> list[Photo]:
    """The files, each content once.

    Raises:
        BadPhoto: names every file that is no photo.
    """
    found: dict[str, Photo] = {}
    bad = []
    for path in images:
        try:
            digest = sha256(path)
            found[digest] = Photo(path, digest, to_square(decode(path.read_bytes()), side))
        except (BadPhoto, OSError) as error:
            bad.append(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
    if bad:
        raise BadPhoto(f"{'; '.join(bad)}; leave {'it' if len(bad) == 1 else 'them'} out or replace")
    return list(found.values())


@contextmanager
def _serving(workspace: Workspace) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """The lineage of the version that serves, its graph, verified, and a folder to work in."""
    lineage = model_lineage(workspace)
    versions = repository(workspace)
    versions.verify(lineage["version"])
    with tempfile.TemporaryDirectory(prefix="cleanshelf-") as folder:
        yield lineage, versions.path(lineage["version"]) / "model.onnx", Path(folder)


def _stacked(photos: Sequence[Photo]) -> NDArray[np.uint8]:
    return np.stack([photo.pixels for photo in photos])


def _missed(patch: Patch) -> str:
    """Which of the product's own photos the graph does not take for it; "" for none."""
    said = zip(patch.photos, first_labels(patch.graph, _stacked(patch.photos)), strict=True)
    wrong = [f"{photo.path} is {label or 'unknown'}" for photo, label in said if label != patch.label]
    return f"own photos would not be recognised: {', '.join(wrong)}; leave them out" if wrong else ""


def _rehearsed(patch: Patch) -> Change:
    return Change(patch.step, patch.label, patch.parent, len(patch.labels), patch.hashes)


def _judge_and_promote(workspace: Workspace, patch: Patch, overrides: Sequence[str]) -> Change:
    golden = np.concatenate(
        [repository(workspace).golden(patch.parent).image, *(each.pixels[None] for each in patch.photos)]
    )
    run = Run(workspace, recipe_of(workspace, patch.lineage["run"], overrides), id=patch.step)
    verdict = _judge(run, patch, golden)
    if not verdict.passed:
        raise GateRefused(
            [*verdict.reasons, "other photos may help, --set gate.enrol=0.02 allows more, and so does retraining"]
        )
    lineage = describe(patch, verdict)
    with workspace.lock(patch.step, name="serving"):
        if ModelVersions(Ledger(workspace.root)).current() != patch.parent:
            raise WorkspaceBusy(f"version {patch.parent} does not serve any more; run the command again")
        number = register_and_promote(workspace, patch.graph, lineage=lineage, labels=patch.labels,
                         golden=decisive(patch.graph, golden)[:GOLDEN_PHOTOS])  # fmt: skip
    return replace(_rehearsed(patch), reasons=verdict.reasons, model_version=number)


def _judge(run: Run, patch: Patch, photos: NDArray[np.uint8]) -> Verdict:
    """Whether nothing but the one product differs, and the others do not suffer; the file gets the figures."""
    larger, smaller = patch.larger_and_smaller
    reference = f"version {patch.parent}"
    gate = run.recipe.gate
    allowed = replace(gate, mean_class=gate.enrol)  # hardly a product comes that costs the others nothing
    parity = asdict(agreement(larger, smaller, label=patch.label, photos=photos)) | {"reference": reference}
    data = DataFolder(DataVersions(run.workspace).materialise("selected"))
    before, after = (measure_graph(run, data, graph, among=smaller) for graph in (patch.former, patch.graph))
    metrics = json.loads((after / "accuracy.json").read_bytes())
    stamp(patch.graph, {"made_from": sha256(patch.former), "step": patch.title, "metrics": json.dumps(metrics),
                        "parity": json.dumps(parity)})  # fmt: skip
    answers = read_answers(read_manifest(data), after, before)
    return judge(GateInput(parity, answers, reference=reference), settings=allowed,
                 graph_sha256=sha256(patch.graph), against=patch.parent)  # fmt: skip


def recipe_of(workspace: Workspace, run: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run, or the default one where it is gone, with the gate as told.

    Raises:
        InputError: an override is of a key outside [gate].
    """
    path = workspace.runs / run / "recipe.json"
    tables = json.loads(path.read_bytes()) if path.exists() else {"name": "default"}
    for override in overrides:
        if not override.strip().startswith("gate."):
            raise InputError(f"--set {override}: nothing is trained here, so only keys of [gate] count")
        set_key(tables, override)
    return from_dict(tables)


def describe(patch: Patch, verdict: Verdict) -> dict[str, Any]:
    """The lineage of the patched version: all that its file says of itself, from which photos, and why it may be served."""
    return {
        **facts(patch.graph),
        "run": patch.lineage["run"],
        "parent": patch.parent,
        "photos": patch.hashes,
        "graph_sha256": verdict.graph_sha256,
        "verdict": list(verdict.reasons),
    }
