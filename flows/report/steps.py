"""Accuracy after each step of a retraining, on the same test photos."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.workspace.results import Balanced, Crops, DataFolder, Exported, Trained, Weights
from models.data.manifest import Manifest, read_manifest
from models.evaluation.accuracy import Accuracy, accuracy
from models.evaluation.scores import Scores, mean, read_scores


@dataclass(frozen=True)
class StepAccuracy:
    """Accuracy after one step; shares in [0, 1], None if there are no test photos of such classes."""

    step: str
    top1: float | None
    mean_class: float | None
    head: float | None
    middle: float | None
    tail: float | None


def step_accuracies(
    data: DataFolder,
    *,
    as_delivered: list[Trained],
    cleaned: list[Trained],
    finetuned: list[Trained],
    balanced: list[Balanced],
    weights: Weights,
    students: Sequence[Trained] = (),
    crops: Crops,
    graph: Exported,
) -> list[StepAccuracy]:
    """One row per step of the recipe.

    Rows of "one network" are means over the members, so that the gain of the ensemble shows separately. Head, middle and
    tail are thirds of the classes by number of training photos. `finetuned` is empty if nothing was fine-tuned, `students`
    if nothing was distilled.
    """
    manifest = read_manifest(data)
    steps: dict[str, Sequence[Path]] = {
        "labels as delivered": as_delivered,
        "after cleaning": cleaned,
        "at high resolution": finetuned,
        "re-balanced": balanced,
    }
    rows = []
    for name, folders in steps.items():
        if folders:
            rows.append(_row(f"one network, {name}", [_test_scores(folder, manifest) for folder in folders], manifest))
    counts = json.loads((weights / "ensemble.json").read_text(encoding="utf-8"))["weights"]
    num_crops = json.loads((crops / "crops.json").read_text(encoding="utf-8"))["crops"]
    members = [_test_scores(folder, manifest) for folder in balanced]
    together = mean(members, weights=counts)
    rows.append(_row(f"ensemble of {np.count_nonzero(counts)}", [together], manifest))
    rows += [_row("student of the ensemble", [_test_scores(student, manifest)], manifest) for student in students]
    answers = np.load(graph / "answers.npz")
    name = "one graph, with crops" if num_crops > 1 else "one graph"
    rows.append(_mean(name, [_accuracy(answers["ranked"], answers["target"], manifest)]))
    return rows


def _test_scores(folder: Path, manifest: Manifest) -> Scores:
    scores = read_scores(folder / "scores.parquet")
    return scores.select(manifest.split[manifest.rows_of(scores.id)] == "test")


def _row(step: str, networks: list[Scores], manifest: Manifest) -> StepAccuracy:
    return _mean(step, [_accuracy(scores.top, scores.target, manifest) for scores in networks])


def _accuracy(ranked: NDArray[np.int64], target: NDArray[np.int64], manifest: Manifest) -> Accuracy:
    return accuracy(ranked, target, train_counts=manifest.train_counts())


def _mean(step: str, figures: list[Accuracy]) -> StepAccuracy:
    names = ("top1", "mean_class", "head", "middle", "tail")
    means = (float(np.mean([getattr(each, name) for each in figures])) for name in names)
    return StepAccuracy(step, *(None if math.isnan(value) else value for value in means))
