"""What networks say of photos they never saw becomes decisions: arrays in, a manifest out, nothing removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cleaning import HALF, Noise, TopK, attractor_classes, estimate_noise, label_quality, suggest_labels, worst
from models.data.manifest import FLAGGED, Manifest
from models.evaluation.scores import Scores, concatenate, mean
from models.recipe.config import Clean


def out_of_sample(folds: Sequence[Scores], manifest: Manifest) -> Scores:
    """One row per training and validation photo that can be judged, by networks that did not train on it.

    Each fold's scores hold its own part of the training photos and all validation photos: the former are taken as they are,
    the latter are the mean over the folds. A validation photo of a class without training photos cannot be judged.
    """
    validation = manifest.id[manifest.split == "val"].astype(str)
    of_fold = [fold.select(~np.isin(fold.id, validation)) for fold in folds]
    of_validation = mean(
        [fold.select(np.isin(fold.id, validation)) for fold in folds], num_classes=len(manifest.classes)
    )
    return concatenate([*of_fold, of_validation.select(of_validation.target >= 0)])


def scored_by(names: Sequence[str], folds: Sequence[Scores], scores: Scores) -> NDArray[np.object_]:
    """(N,) which folds judged each photo of `scores`: the one that held it out, or of validation photos all."""
    found = np.full(len(scores), " ".join(names), object)
    held_out = np.stack([np.isin(scores.id, fold.id) for fold in folds])
    for name, own in zip(names, held_out & (held_out.sum(0) == 1), strict=True):
        found[own] = name
    return found


class FoldEmbeddings(NamedTuple):
    """embeddings (N, d), and the fold (N,) whose network made them: those of different networks cannot be compared."""

    embeddings: NDArray[np.floating]
    fold: NDArray[np.int64]


def fold_embeddings(
    embeddings: Sequence[NDArray[np.floating]], folds: Sequence[Scores], scores: Scores, *, shared: bool
) -> FoldEmbeddings:
    """Of the photos of `scores`, by the fold that held them out; of validation photos, which all folds did, by the first.

    shared: all folds had the same network for it; then all photos belong to one.
    """
    found = FoldEmbeddings(np.empty((len(scores), embeddings[0].shape[1]), np.float32), np.zeros(len(scores), np.int64))
    for number in reversed(range(len(folds))):
        judged = np.isin(folds[number].id, scores.id)
        row = np.searchsorted(scores.id, folds[number].id[judged])
        found.embeddings[row], found.fold[row] = embeddings[number][judged], 0 if shared else number
    return found


def decide(
    manifest: Manifest,
    scores: Scores,
    *,
    settings: Clean,
    round: int,
    scored_by: NDArray[np.object_],
    fold_embeddings: FoldEmbeddings | None = None,
) -> Manifest:
    """The manifest with the score of every judged photo and a decision on its given label; earlier decisions are taken back.

    Of the training photos the worst are disbelieved, down to the floor of each class and within the budget: dropped, kept as
    doubted where labels are weighed, or relabelled where that is asked for. A validation photo is dropped or kept, without a
    floor: that guards what is learnt, and a doubtful photo measures nothing.
    """
    probs = TopK(scores.top, scores.probs, scores.p_label, len(manifest.classes))
    embeddings, fold = fold_embeddings or (None, None)
    quality = label_quality(scores.target, probs, embeddings, rule=settings.rule, groups=fold, **settings.params)
    row = np.searchsorted(manifest.id, scores.id)
    train, wrong = manifest.split[row] == "train", quality < HALF
    wrong[train] = worst(scores.target[train], quality[train], threshold=HALF, floor_share=settings.floor_share,
                         floor_count=settings.floor_count, budget=settings.budget)  # fmt: skip
    label, moved = manifest.given_label[row], np.zeros(len(row), np.bool_)
    if settings.relabel:
        suggested = suggest_labels(scores.target, probs, embeddings, groups=fold, confidence=settings.relabel)
        barred = attractor_classes(scores.target[train], suggested[train], num_classes=len(manifest.classes))
        moved = wrong & train & (suggested != scores.target) & ~barred[suggested]
        label[moved] = np.array(manifest.classes, object)[suggested[moved]]
    stays = moved | (train & (settings.use == "weigh"))
    decision = np.select([moved, wrong & stays, wrong], ["relabelled", "doubted", "dropped"], "").astype(object)
    new = {
        "label": label,
        "kept": stays | ~wrong,
        "decision": decision,
        "score": quality,
        "round": round,
        "scored_by": scored_by,
    }
    columns: dict[str, Any] = {name: _set(getattr(manifest, name), row, value) for name, value in new.items()}
    return dataclasses.replace(manifest, **columns)


def confusion(manifest: Manifest, scores: Scores, *, fold_embeddings: FoldEmbeddings) -> Noise:
    """Which class is given for which among the training photos."""
    train = np.isin(scores.id, manifest.id[manifest.split == "train"].astype(str))
    seen, classes = scores.select(train), len(manifest.classes)
    return estimate_noise(
        seen.target,
        TopK(seen.top, seen.probs, seen.p_label, classes),
        fold_embeddings.embeddings[train],
        groups=fold_embeddings.fold[train],
    )


def _set(column: NDArray[Any], row: NDArray[np.int64], new: Any) -> NDArray[Any]:
    """The column with these rows changed."""
    changed = column.copy()
    changed[row] = new
    return changed


class Moves(NamedTuple):
    """Numbers of photos: disbelieved now and not before, believed again, and the share of the judged that both are."""

    flagged: int
    restored: int
    share: float


def moves(before: Manifest, after: Manifest) -> Moves:
    """What a round changed; a photo that is disbelieved in another way than before moves too."""
    was, now = (np.isin(each.decision, FLAGGED) for each in (before, after))
    changed = (before.decision != after.decision) | (before.label != after.label)
    judged = max(1, int(np.count_nonzero(~np.isnan(after.score))))
    return Moves(int((changed & now).sum()), int((was & ~now).sum()), float(changed.sum()) / judged)
