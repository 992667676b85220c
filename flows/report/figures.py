"""Figures of a retraining beyond its accuracies: arrays in, rows of tables out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.gate.verdict import Verdict
from flows.workspace.results import Balanced, DataFolder, Exported
from models.data.manifest import FLAGGED, Manifest, read_manifest, read_table

TENTHS = 10
SHOWN = 10  # pairs of classes, and about as many strengths of one method
REJECTED = "no product"  # a photo that a graph with export.reject takes for none of the classes


@dataclass(frozen=True)
class Figure:
    """A table; `bars` names the columns (numbers, 0 or more) that are drawn as bars.

    name: the picture that report.html draws of it; "" in reports of earlier releases.
    """

    title: str
    rows: list[dict[str, Any]]
    bars: tuple[str, ...] = ()
    name: str = ""


def figures(data: DataFolder, balanced: Sequence[Balanced], graph: Exported, *, cleaned: DataFolder) -> list[Figure]:
    """The figures of a run: of the data that its model learnt from, its re-balanced members, its graph, and its cleaning."""
    manifest, answers = read_manifest(data), np.load(graph / "answers.npz")
    choices = [json.loads((folder / "balance.json").read_text(encoding="utf-8")) for folder in balanced]
    ranked, target = answers["ranked"], answers["target"]
    scored = manifest if cleaned == data else read_manifest(cleaned)
    train = scored.split == "train"
    labels = confidences(scored.score[train], scored.decision[train])
    pairs = with_photos(confusions(ranked, target, manifest.classes), ranked, target, manifest)
    octaves = tail(ranked, target, manifest.train_counts())
    trusted = reliability(answers["probability"], ranked, target) if "probability" in answers else []
    return [
        Figure("Labels of training photos by their score", labels, ("believed", "suspect"), "labels"),
        Figure("Classifiers by mean-class accuracy on validation photos", classifiers(choices), ("accuracy",)),
        Figure("Test photos taken for another class", pairs, ("photos",), "confusions"),
        Figure("Accuracy on test photos by number of training photos", octaves, ("accuracy",), "tail"),
        Figure("Right answers by the probability that the model gives them", trusted, ("right",), "reliability"),
    ]


def photos_to_look_at(data: DataFolder, verdict: Verdict) -> list[dict[str, Any]]:
    """A row for each photo that explains a refusal: the gate, the photo's id and path, and its labels and score."""
    named = [(finding.gate, photo) for finding in verdict.findings for photo in finding.photos]
    if not named:
        return []
    index, manifest = read_table(data, name="index"), read_manifest(data)
    rows = np.searchsorted(manifest.id, np.array([photo for _, photo in named], object))
    return [
        {
            "gate": gate,
            "photo": photo,
            "path": index["path"][int(row)].as_py(),
            "given label": manifest.given_label[row],
            "split": manifest.split[row],
            "decision": manifest.decision[row],
            "score": None if np.isnan(manifest.score[row]) else float(manifest.score[row]),
        }
        for (gate, photo), row in zip(named, rows, strict=True)
    ]


def confidences(score: NDArray[np.float32], decision: NDArray[np.object_]) -> list[dict[str, Any]]:
    """Photos per tenth of the score, lowest first: `believed` without a decision, `suspect` with one, and each decision.

    Args:
        score: (N,) in [0, 1], NaN for photos that cleaning did not score.
        decision: (N,) as in labels.parquet.
    """
    scored = ~np.isnan(score)
    if not scored.any():
        return []
    tenth = tenths(score[scored])
    counts = {name: np.bincount(tenth[decision[scored] == name], minlength=TENTHS).tolist() for name in ("", *FLAGGED)}
    rows = []
    for i in range(TENTHS):
        flagged = {name: counts[name][i] for name in FLAGGED}
        rows.append(
            {"score": tenth_in_words(i), "believed": counts[""][i], "suspect": sum(flagged.values()), **flagged}
        )
    return rows


def tenths(share: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the tenth, 0 to 9, in which each share in [0, 1] lies; 1 lies in the last."""
    return np.minimum((share * TENTHS).astype(np.int64), TENTHS - 1)


def tenth_in_words(tenth: int) -> str:
    """The range of shares that a tenth stands for."""
    return f"{tenth / TENTHS:.1f} to {(tenth + 1) / TENTHS:.1f}"


def classifiers(choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of each classifier that was tried (balance.json of each member): mean and range over the members.

    A method with a strength, such as tau, is shown at about SHOWN strengths and at those that a member took.
    """
    tried: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    taken: dict[tuple[str, float], list[str]] = defaultdict(list)
    for member, choice in enumerate(choices, start=1):
        taken[choice["chosen"]["method"], choice["chosen"]["tau"]].append(str(member))
        for candidate in choice["candidates"]:
            for strength, accuracy in candidate["curve"]:
                tried[candidate["method"]][strength].append(accuracy)
    rows = []
    for method, curve in tried.items():
        interval = len(curve) // SHOWN + 1
        for number, (strength, accuracies) in enumerate(sorted(curve.items())):
            if number % interval and (method, strength) not in taken:
                continue
            rows.append({
                "method": method,
                "strength": strength,
                "accuracy": float(np.mean(accuracies)),
                "lowest": min(accuracies),
                "highest": max(accuracies),
                "taken by member": ", ".join(taken.get((method, strength), [])),
            })  # fmt: skip
    return rows


def confusions(ranked: NDArray[np.int64], target: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent confusions: the class shown, the class answered, photos confused, and photos `of` the class shown.

    Args:
        ranked: (N, K) positions in `classes`, best first; below 0 for none of them.
        target: (N,) position of the class that each photo shows; below 0 for none of them.
    """
    first = ranked[:, 0].clip(min=-1)
    wrong = (first != target) & (target >= 0)
    pairs, photos = np.unique(np.stack([target[wrong], first[wrong]], axis=1), axis=0, return_counts=True)
    shown = np.bincount(target[target >= 0], minlength=len(classes))
    names = [*classes, REJECTED]
    rows = []
    for i in np.argsort(-photos, kind="stable")[:SHOWN]:
        true, answered = pairs[i]
        rows.append(
            {"shows": names[true], "taken for": names[answered], "photos": int(photos[i]), "of": int(shown[true])}
        )
    return rows


def with_photos(
    rows: list[dict[str, Any]], ranked: NDArray[np.int64], target: NDArray[np.int64], manifest: Manifest
) -> list[dict[str, Any]]:
    """The rows of `confusions` with the id of a confused photo, and of a training photo of the class that was answered.

    The second is None if the answer was none of the classes.
    """
    number = {name: i for i, name in enumerate(manifest.classes)} | {REJECTED: -1}
    photo = manifest.id[(manifest.split == "test") & manifest.kept]
    first, learnt = ranked[:, 0].clip(min=-1), manifest.kept & (manifest.split == "train")
    told = []
    for row in rows:
        true, answered = number[row["shows"]], number[row["taken for"]]
        like = np.flatnonzero(learnt & (manifest.target == answered) & (answered >= 0))
        example = photo[np.argmax((target == true) & (first == answered))]
        told.append(row | {"example": example, "compare": manifest.id[like[0]] if len(like) else None})
    return told


def reliability(
    probability: NDArray[np.float32], ranked: NDArray[np.int64], target: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Mean probability of the best class and share of right answers, by tenths of that probability that have photos.

    Args:
        probability: (N,) of the best class, in [0, 1].
        ranked, target: as for `confusions`; photos that the graph takes for none of the classes do not count.
    """
    answered = ranked[:, 0] >= 0
    probability, right = probability[answered], (ranked[:, 0] == target)[answered]
    tenth = tenths(probability)
    photos, said, hits = (
        np.bincount(tenth, weights, minlength=TENTHS) for weights in (None, probability, right.astype(np.float64))
    )
    return [
        {
            "probability": tenth_in_words(i),
            "photos": int(photos[i]),
            "mean probability": float(said[i] / photos[i]),
            "right": float(hits[i] / photos[i]),
        }
        for i in np.flatnonzero(photos).tolist()
    ]


def tail(ranked: NDArray[np.int64], target: NDArray[np.int64], train_counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Mean-class accuracy by octaves of the number of training photos of a class, rarest first.

    Args:
        ranked, target: as for `confusions`.
        train_counts: (C,) training photos per class.
    """
    known = target >= 0
    shown = np.bincount(target[known], minlength=len(train_counts))
    right = np.bincount(target[known & (ranked[:, 0] == target)], minlength=len(train_counts))
    octave = np.frexp(train_counts)[1]  # 0 for none, 1 for 1, 2 for 2 to 3, 3 for 4 to 7, ...
    rows = []
    for each in np.unique(octave[shown > 0]).tolist():
        classes = (octave == each) & (shown > 0)
        rows.append({
            "training photos": f"{2**each // 2} to {2**each - 1}" if each > 1 else str(each),
            "classes": int(classes.sum()),
            "test photos": int(shown[classes].sum()),
            "accuracy": float((right[classes] / shown[classes]).mean()),
        })  # fmt: skip
    return rows
