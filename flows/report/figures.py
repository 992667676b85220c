"""What a person wants to see of a retraining beside its accuracies: arrays in, rows of tables out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.workspace.results import Balanced, DataFolder, Exported
from models.data.manifest import FLAGGED, read_manifest

TENTHS = 10
SHOWN = 10  # pairs of classes, and strengths of one method
NOBODY = "no product"  # what a graph with export.reject may answer


@dataclass(frozen=True)
class Figure:
    """A table; `bars` names those of its columns (numbers, 0 or more) that are worth drawing."""

    title: str
    rows: list[dict[str, Any]]
    bars: tuple[str, ...] = ()


def figures(data: DataFolder, balanced: Sequence[Balanced], graph: Exported) -> list[Figure]:
    """Of the data version that a run ended with, its re-balanced members and its graph."""
    manifest, answers = read_manifest(data), np.load(graph / "answers.npz")
    choices = [json.loads((folder / "balance.json").read_text(encoding="utf-8")) for folder in balanced]
    ranked, target = answers["ranked"], answers["target"]
    return [
        Figure("Labels by their score", confidences(manifest.score, manifest.decision), ("believed", "suspect")),
        Figure("Classifiers by mean-class accuracy on validation photos", classifiers(choices), ("accuracy",)),
        Figure("Test photos taken for another class", confusions(ranked, target, manifest.classes), ("photos",)),
        Figure("Accuracy on test photos by number of training photos", tail(ranked, target, manifest.train_counts()),
               ("accuracy",)),
    ]  # fmt: skip


def confidences(score: NDArray[np.float32], decision: NDArray[np.object_]) -> list[dict[str, Any]]:
    """The photos that cleaning judged, by tenths of the score: believed, and suspect by what was decided; worst first.

    Args:
        score: (N,) in [0, 1], NaN where it was not judged.
        decision: (N,) as in labels.parquet.
    """
    judged = ~np.isnan(score)
    tenth = np.minimum((score[judged] * TENTHS).astype(np.int64), TENTHS - 1)
    counts = {name: np.bincount(tenth[decision[judged] == name], minlength=TENTHS).tolist() for name in ("", *FLAGGED)}
    rows = [{name: counts[name][i] for name in FLAGGED} for i in range(TENTHS)] if judged.any() else []
    return [{"score": f"{i / TENTHS:.1f} to {(i + 1) / TENTHS:.1f}", "believed": counts[""][i], "suspect": sum(row.values()), **row}
            for i, row in enumerate(rows)]  # fmt: skip


def classifiers(choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was tried on the members' classifiers (balance.json of each): the mean over the members, their range, who took it.

    Of a method with a strength, such as tau, every few steps are shown, and those that were taken.
    """
    tried: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    taken: dict[tuple[str, float], list[str]] = defaultdict(list)
    for member, choice in enumerate(choices, start=1):
        taken[choice["chosen"]["method"], choice["chosen"]["tau"]].append(str(member))
        for candidate in choice["candidates"]:
            for strength, accuracy in candidate["curve"]:
                tried[candidate["method"]][strength].append(accuracy)
    return [
        {"method": method, "strength": strength, "accuracy": float(np.mean(found)), "lowest": min(found), "highest": max(found),
         "taken by member": ", ".join(taken.get((method, strength), []))}
        for method, curve in tried.items()
        for step, (strength, found) in enumerate(sorted(curve.items()))
        if step % (len(curve) // SHOWN + 1) == 0 or (method, strength) in taken
    ]  # fmt: skip


def confusions(ranked: NDArray[np.int64], target: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent pairs of what a photo shows and what it was taken for; `of` is how many photos show that.

    Args:
        ranked: (N, K) positions in `classes`, best first; below 0 for none of them.
        target: (N,) the same of what the photos show.
    """
    first = ranked[:, 0].clip(min=-1)
    wrong = (first != target) & (target >= 0)
    pairs, photos = np.unique(np.stack([target[wrong], first[wrong]], axis=1), axis=0, return_counts=True)
    shown = np.bincount(target[target >= 0], minlength=len(classes))
    names = [*classes, NOBODY]
    return [{"shows": names[pairs[i, 0]], "taken for": names[pairs[i, 1]], "photos": int(photos[i]), "of": int(shown[pairs[i, 0]])}
            for i in np.argsort(-photos, kind="stable")[:SHOWN]]  # fmt: skip


def tail(ranked: NDArray[np.int64], target: NDArray[np.int64], train_counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Mean-class accuracy of the classes with so many training photos, in octaves, rarest first.

    Args:
        ranked, target: as for `confusions`.
        train_counts: (C,) training photos per class.
    """
    known = target >= 0
    shown = np.bincount(target[known], minlength=len(train_counts))
    right = np.bincount(target[known & (ranked[:, 0] == target)], minlength=len(train_counts))
    octave = np.frexp(train_counts)[1]  # 0 for none, 1 for 1, 2 for 2 to 3, 3 for 4 to 7, ...
    of = {int(each): (octave == each) & (shown > 0) for each in np.unique(octave[shown > 0])}
    return [{"training photos": f"{2**each // 2} to {2**each - 1}" if each > 1 else str(each), "classes": int(classes.sum()),
             "test photos": int(shown[classes].sum()), "accuracy": float((right[classes] / shown[classes]).mean())}
            for each, classes in of.items()]  # fmt: skip
