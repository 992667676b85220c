"""Decisions about labels: which become label issues, and how much each photo counts in training."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError
from models.evaluation.accuracy import thirds

log = logging.getLogger(__name__)
MOST = 0.6  # share of label issues beyond which a warning is logged


def worst(
    target: NDArray[np.int64],
    score: NDArray[np.floating],
    *,
    threshold: float,
    floor_share: float = 0.3,
    floor_count: int = 5,
    budget: float = 1.0,
) -> NDArray[np.bool_]:
    """(N,) bool: True for a label issue, which is a score below the threshold; lowest scores first, down to the floor.

    A class of n photos keeps at least min(n, max(floor_count, floor_share n)) of them. Without this floor, cleaning by
    predictions empties the tail: a network that saw a product five times takes it for noise (RoLT, Wei et al. 2021).

    Args:
        target: (N,) classes of the labels; -1, a class that the network does not know, is never an issue.
        score: (N,) low means suspect; NaN is never an issue.
        threshold: scores below it are suspect.
        floor_share: share of a class that is always kept, in [0, 1].
        floor_count: photos of a class that are always kept, >= 1.
        budget: largest share of all photos that become label issues, in [0, 1]; the lowest scores count first.

    Raises:
        CleaningError: a share or a count out of range.
    """
    _check(floor_share, floor_count, budget)
    suspect = (score < threshold) & (target >= 0)
    rank, counts = ranks(target, np.where(suspect, score, np.inf))
    wrong = suspect & (rank < (counts - floors(counts, floor_share, floor_count))[target + 1])
    most = int(budget * len(target))
    if wrong.sum() > most:
        order = np.argsort(np.where(wrong, score, np.inf), kind="stable")
        wrong[order[most:]] = False
    if wrong.sum() > MOST * max(1, (target >= 0).sum()):
        log.warning("labels: %.0f%% look wrong, too many to trust the result; check that the classes are in the order "
                    "of the columns, and look at some photos", 100 * wrong.mean())  # fmt: skip
    return wrong


def ranks(target: NDArray[np.int64], score: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) rank of each photo within its class, 0 for the lowest score; (C + 1,) sizes of the classes -1, 0, 1, ..."""
    target = target + 1
    counts = np.bincount(target)
    order = np.lexsort((score, target))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    rank = np.empty(len(target), np.int64)
    rank[order] = np.arange(len(target)) - starts[target[order]]
    return rank, counts


def floors(counts: NDArray[np.int64], share: float, count: int) -> NDArray[np.int64]:
    """Number of photos of each class that are always kept."""
    return np.minimum(counts, np.maximum(count, np.ceil(share * counts))).astype(np.int64)


def attractor_classes(
    labels: NDArray[np.int64], suggested: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.bool_]:
    """(C,) bool: True for an attractor class, for which photos of some tail class are most often taken; ties all count.

    No photo should be relabelled as an attractor class, because photos of rare products are often mistaken for it. The
    tail is the third of the classes with the fewest photos.

    Args:
        labels: (N,) classes; -1 is ignored.
        suggested: (N,) predicted classes, as `suggest_labels` returns them.
        num_classes: C.
    """
    tail = thirds(np.bincount(labels[labels >= 0], minlength=num_classes)) == 2
    moved = (labels >= 0) & (suggested != labels) & tail[labels]
    pairs, count = np.unique(labels[moved] * num_classes + suggested[moved], return_counts=True)
    most, found = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.bool_)
    np.maximum.at(most, pairs // num_classes, count)
    found[(pairs % num_classes)[count == most[pairs // num_classes]]] = True
    return found


def label_weights(
    labels: NDArray[np.int64],
    quality: NDArray[np.floating],
    *,
    floor_share: float = 0.3,
    floor_count: int = 5,
) -> NDArray[np.float32]:
    """(N,) sample weights in [0, 1] to train on all photos: the label quality, at least 0.5 for the best of a class.

    Weighting was better than dropping wherever we measured both. A label of quality 0.1 still carries some information,
    and photos just below and above a threshold hardly differ.

    Args:
        labels: (N,) classes; the weight of -1 is 1, because such a label has no quality.
        quality: (N,) in [0, 1], as `label_quality` returns it.
        floor_share: share of a class, the best photos, whose weight is at least 0.5, in [0, 1].
        floor_count: least number of such photos in a class, >= 1.

    Raises:
        CleaningError: a quality outside [0, 1], another N, or a floor out of range.
    """
    _check(floor_share, floor_count, 1.0)
    if np.shape(quality) != np.shape(labels):
        raise CleaningError(
            f"quality: shape {np.shape(quality)} for labels of shape {np.shape(labels)}; give one value for each photo"
        )
    if not ((quality >= 0) & (quality <= 1)).all():
        raise CleaningError("quality: NaN or outside [0, 1]; pass the result of label_quality")
    rank, counts = ranks(labels, quality)
    best = rank >= (counts - floors(counts, floor_share, floor_count))[labels + 1]
    weights = np.where(best, np.maximum(quality, 0.5), quality).astype(np.float32)
    weights[labels < 0] = 1
    return weights


def _check(floor_share: float, floor_count: int, budget: float) -> None:
    if not 0 <= floor_share <= 1:
        raise CleaningError(f"floor_share: {floor_share} is outside [0, 1]; give the share of a class that is kept")
    if floor_count < 1:
        raise CleaningError(
            f"floor_count: {floor_count} is below 1; give at least 1, so that no class loses all photos"
        )
    if not 0 <= budget <= 1:
        raise CleaningError(f"budget: {budget} is outside [0, 1]; give a share of the photos")
