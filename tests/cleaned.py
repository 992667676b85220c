"""A workspace with label issues, as a cleaning leaves it, without the training that found them.

`cleaned_workspace` takes about two seconds. Its fold `fold-0-test` scored every training photo: it suggests the next class
for each photo that it flags.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from flows.data.derive import link_unchanged
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.workspace import Workspace
from models.data.manifest import Manifest, read_manifest, write_labels, write_version
from models.evaluation.scores import Scores, write_scores
from tests.deliveries import deliver

CLASSES = ("Alma Milk 1 l", "Alma Milk 0.5 l", "Brio Soap", "Cora <i onload=alert(1)>", "Dune Rice", "Zoë's Salt")
FOLD = "fold-0-test"
DIMENSIONS = 16


def cleaned_workspace(root: Path, *, photos: int = 12, side: int = 48, every: int = 3) -> Workspace:
    """A workspace whose selected version has a label issue in every `every`-th training photo."""
    workspace = Workspace.init(root / "shop")
    versions = DataVersions(workspace)
    folder = versions.new_folder()
    build_version(deliver(root / "source", dict.fromkeys(CLASSES, photos), side=side), base=None, out=folder)
    versions.commit(folder, step="ingest", message="first delivery")
    base = versions.materialise("selected")
    manifest = read_manifest(base)
    flagged = np.flatnonzero((manifest.split == "train") & manifest.kept)[::every]
    folder = versions.new_folder()
    link_unchanged(base, folder, changed=("labels.parquet", "VERSION.json"))
    write_labels(folder, _with_issues(manifest, flagged))
    write_version(folder, parent=base.name, step="clean-1")
    versions.commit(folder, step="clean-1", message=f"{len(flagged)} labels flagged")
    _write_fold(workspace.runs / "stages" / FOLD, manifest, flagged)
    return workspace


def suggestion(manifest: Manifest, row: int) -> str:
    """The class that the fold suggests for a flagged photo."""
    return manifest.classes[(int(manifest.given_target[row]) + 1) % len(manifest.classes)]


def _with_issues(manifest: Manifest, flagged: np.ndarray) -> Manifest:
    """The decisions in turn: doubted, dropped, relabelled; the score grows with the row."""
    columns = {
        name: getattr(manifest, name).copy() for name in ("label", "kept", "decision", "score", "round", "scored_by")
    }
    manifest, train = dataclasses.replace(manifest, **columns), manifest.split == "train"
    manifest.score[train] = 0.9
    manifest.score[flagged] = np.linspace(0.01, 0.45, len(flagged))
    manifest.round[train] = 1
    manifest.scored_by[train] = FOLD
    for position, row in enumerate(flagged):
        manifest.decision[row] = ("doubted", "dropped", "relabelled")[position % 3]
        manifest.kept[row] = position % 3 != 1
        if position % 3 == 2:
            manifest.label[row] = suggestion(manifest, row)
    return manifest


def _write_fold(folder: Path, manifest: Manifest, flagged: np.ndarray) -> None:
    """Scores in the fold's format: the given class is best, or of a flagged photo the next one; features by class."""
    rows, count = np.flatnonzero(manifest.split == "train"), len(manifest.classes)
    given = manifest.given_target[rows]
    best = np.where(np.isin(rows, flagged), (given + 1) % count, given)
    top = (best[:, None] + np.arange(count)) % count
    probs = np.tile(np.float32(0.7) * np.float32(0.4) ** np.arange(count, dtype=np.float32), (len(rows), 1))
    folder.mkdir(parents=True)
    p_label = probs[np.arange(len(rows)), np.argmax(top == given[:, None], axis=1)]
    write_scores(Scores(manifest.id[rows].astype(str), given, p_label, top, probs), folder / "scores.parquet")
    noise = np.random.default_rng(0).normal(size=(len(rows), DIMENSIONS))
    np.save(folder / "features.npy", (10 * np.eye(count, DIMENSIONS)[best] + noise).astype(np.float16))
