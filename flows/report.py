"""What each step was worth, on the same test photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.manifest import Manifest, read_manifest
from models.evaluate import accuracy
from models.scores import Scores, mean, read_scores


@dataclass(frozen=True)
class Row:
    """Accuracy after one step; shares in [0, 1]."""

    step: str
    top1: float
    mean_class: float
    tail: float


def effects(first: list[Path], retrained: list[Path], balanced: list[Path], graph: Path, data: Path) -> list[Row]:
    """One row per step of the recipe.

    "One network" rows are the mean over the members, so that the ensemble's own gain stands alone; the tail is the third of
    the classes with fewest photos.
    """
    manifest = read_manifest(data)
    steps = (("labels as delivered", first), ("after cleaning", retrained), ("re-balanced, tau", balanced))
    rows = [_mean_row(f"one network, {name}", [_test_scores(folder, manifest) for folder in folders], manifest)
            for name, folders in steps]  # fmt: skip
    together = mean([_test_scores(folder, manifest) for folder in balanced], num_classes=len(manifest.classes))
    rows.append(_row(f"ensemble of {len(balanced)}", together.top, together.target, manifest))
    answers = np.load(graph / "answers.npz")
    rows.append(_row("one graph, with crops", answers["ranked"], answers["target"], manifest))
    return rows


def _test_scores(folder: Path, manifest: Manifest) -> Scores:
    scores = read_scores(folder / "scores.parquet")
    return scores.select(np.isin(scores.id, manifest.id[manifest.split == "test"].astype(str)))


def _mean_row(step: str, members: list[Scores], manifest: Manifest) -> Row:
    rows = [_row(step, scores.top, scores.target, manifest) for scores in members]
    return Row(step, *(float(np.mean([getattr(row, name) for row in rows])) for name in ("top1", "mean_class", "tail")))


def _row(step: str, ranked: NDArray[np.int64], target: NDArray[np.int64], manifest: Manifest) -> Row:
    figures = accuracy(ranked, target, train_counts=manifest.train_counts())
    return Row(step, figures.top1, figures.mean_class, figures.tail)
