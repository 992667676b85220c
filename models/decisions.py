"""Decisions on labels from out-of-sample scores: arrays in, a manifest out. No photo is removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cleaning import HALF, Assessment, Noise, TopK, attractor_classes, worst
from models.cleaning import assess as assess_labels
from models.cleaning.joined import JoinedRows, Table
from models.data.manifest import CHECKED, FLAGGED, NEAR, Manifest
from models.data.positions import positions
from models.evaluation.scores import Scores, concatenate, mean
from models.recipe.config import Clean


def out_of_sample(folds: Sequence[Scores], manifest: Manifest) -> Scores:
    """Scores of the training and validation photos by networks that did not train on them, one row per photo.

    The scores of each fold cover its own part of the training photos and all validation photos. The former are taken as they
    are; the latter are averaged over the folds. A validation photo of a class without training photos cannot be scored.
    """
    is_validation = [manifest.split[manifest.rows_of(fold.id)] == "val" for fold in folds]
    of_fold = [fold.select(~rows) for fold, rows in zip(folds, is_validation, strict=True)]
    of_validation = mean([fold.select(rows) for fold, rows in zip(folds, is_validation, strict=True)])
    return concatenate([*of_fold, of_validation.select(of_validation.target >= 0)])


def scored_by(names: Sequence[str], folds: Sequence[Scores], scores: Scores) -> NDArray[np.object_]:
    """(N,) the folds that scored each photo of `scores`: the fold that held it out, or all folds for a validation photo."""
    found, times = np.full(len(scores), "", object), np.zeros(len(scores), np.int64)
    for name, fold in zip(names, folds, strict=True):
        row = positions(fold.id, scores.id)
        row = row[row >= 0]
        found[row], times[row] = name, times[row] + 1
    found[times != 1] = " ".join(names)
    return found


class FoldEmbeddings(NamedTuple):
    """Embeddings (N, d), and the fold (N,) whose network made them. Those of different networks cannot be compared.

    more: (N, d) embeddings of each further encoder, which the folds share. name_vectors: (C, d) vectors of the classes' names
    in the space of each encoder, or None; () for none at all.
    """

    embeddings: Table
    fold: NDArray[np.int64]
    more: tuple[Table, ...] = ()
    name_vectors: tuple[NDArray[np.float32] | None, ...] = ()

    @property
    def encoders(self) -> list[Table]:
        """The embeddings of all encoders."""
        return [self.embeddings, *self.more]


def fold_embeddings(
    embeddings: Sequence[NDArray[np.floating]], folds: Sequence[Scores], scores: Scores, *, shared: bool
) -> FoldEmbeddings:
    """The embeddings of the photos of `scores`, by the fold that held them out; for validation photos by the first fold.

    They stay in the files, which are in half precision: of several encoders and millions of photos they would take tens of
    gigabytes.

    shared: all folds used the same network, so that all photos count as of one fold.
    """
    fold, place = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
    for number in reversed(range(len(folds))):
        row = positions(folds[number].id, scores.id)
        scored = np.flatnonzero(row >= 0)
        fold[row[scored]], place[row[scored]] = number, scored
    return FoldEmbeddings(JoinedRows(embeddings, fold, place), np.zeros_like(fold) if shared else fold)


def assess(
    manifest: Manifest, scores: Scores, *, settings: Clean, fold_embeddings: FoldEmbeddings | None = None
) -> Assessment:
    """Assessment of the labels of the photos of `scores` by the rule of the recipe; decisions and confusion come from it."""
    probs = TopK(scores.top, scores.probs, scores.p_label, len(manifest.classes))
    seen: dict[str, Any] = {}
    if fold_embeddings:
        seen = {"embeddings": fold_embeddings.encoders, "groups": fold_embeddings.fold,
                "name_vectors": fold_embeddings.name_vectors or None}  # fmt: skip
    return assess_labels(scores.target, probs, rule=settings.rule, names=manifest.classes, **seen, **settings.params)


def decide(
    manifest: Manifest,
    scores: Scores,
    assessment: Assessment,
    *,
    settings: Clean,
    round: int,
    scored_by: NDArray[np.object_],
) -> Manifest:
    """The manifest with a score and a decision for every photo of `scores`; these replace earlier decisions.

    The worst labels of the training photos are flagged, down to the floor of each class and within the budget. Flagged photos
    are dropped, or downweighted if `clean.use` is "weigh", or relabelled if `clean.relabel` allows it. Validation photos get
    a score and stay, because networks that chose them would be flattered by them. With `clean.validation` they are dropped
    without a floor, as the floor protects what is learnt.

    assessment: of these labels, by `assess`.
    """
    quality = assessment.quality
    row = manifest.rows_of(scores.id)
    train, wrong = manifest.split[row] == "train", quality < HALF
    wrong[train] = worst(scores.target[train], quality[train], threshold=HALF, floor_share=settings.floor_share,
                         floor_count=settings.floor_count, budget=settings.budget)  # fmt: skip
    wrong &= train | settings.validation
    label, moved = manifest.given_label[row], np.zeros(len(row), np.bool_)
    if settings.relabel:
        suggested = assessment.suggested(settings.relabel)
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


def as_delivered(manifest: Manifest) -> Manifest:
    """The manifest without scores and decisions of cleaning: each label as it was delivered, or as a person corrected it."""
    # Near-duplicates are never scored; what is written there came from a person.
    ours = ~manifest.has_decision((CHECKED, *NEAR))
    flagged = manifest.has_decision(FLAGGED)
    return dataclasses.replace(
        manifest,
        label=np.where(flagged, manifest.given_label, manifest.label),
        kept=manifest.kept | flagged,
        decision=np.where(flagged, "", manifest.decision).astype(object),
        score=np.where(ours, np.float32("nan"), manifest.score),
        round=np.where(ours, 0, manifest.round).astype(np.int8),
        scored_by=np.where(ours, "", manifest.scored_by).astype(object),
    )


def confusion(manifest: Manifest, scores: Scores, assessment: Assessment) -> Noise:
    """The label noise among the training photos: how often each class is given for another.

    It is counted among the training photos alone, because labels of validation photos are usually right. The estimate behind
    it is that of the decisions, in which validation photos vote too. Earlier releases estimated a second time, without
    them: where validation photos are right more often than training photos, the noise is now a little lower.
    """
    return assessment.noise(manifest.split[manifest.rows_of(scores.id)] == "train")


def _set(column: NDArray[Any], row: NDArray[np.int64], new: Any) -> NDArray[Any]:
    """The column with these rows changed."""
    changed = column.copy()
    changed[row] = new
    return changed


class ChangedLabels(NamedTuple):
    """Numbers of photos flagged now and restored now, and the share of the scored photos that changed."""

    flagged: int
    restored: int
    share: float


def changed_labels(before: Manifest, after: Manifest) -> ChangedLabels:
    """The labels that a round changed; a photo that is flagged in another way than before counts as flagged now."""
    was, now = (each.has_decision(FLAGGED) for each in (before, after))
    changed = (before.decision != after.decision) | (before.label != after.label)
    scored = max(1, int(np.count_nonzero(~np.isnan(after.score))))
    return ChangedLabels(int((changed & now).sum()), int((was & ~now).sum()), float(changed.sum()) / scored)
