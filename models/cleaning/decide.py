"""Which labels to stop believing."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError
from models.evaluation.accuracy import thirds

log = logging.getLogger(__name__)
MOST = 0.6  # of the labels; beyond, there is little to judge by


def worst(
    target: NDArray[np.int64],
    score: NDArray[np.floating],
    *,
    threshold: float,
    floor_share: float = 0.3,
    floor_count: int = 5,
    budget: float = 1.0,
) -> NDArray[np.bool_]:
    """(N,) True where the label is judged wrong: the score is below the threshold, worst first, down to the class's floor.

    A class of n photos keeps at least min(n, max(floor_count, floor_share n)) of them. Without the floor, cleaning by
    prediction strips the tail: a rare product looks like noise to a network that saw it five times (RoLT, Wei et al. 2021).

    Args:
        target: (N,) classes of the labels; -1, a class that no network knows, is never judged.
        score: (N,) low is suspect; NaN is no reason.
        threshold: of the score.
        floor_share: in [0, 1].
        floor_count: photos, >= 1.
        budget: in [0, 1]; at most this share of all photos, the worst of them.

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
        log.warning("labels: %.0f%% are judged wrong, so that there is little to judge by; compare the order of the "
                    "classes with that of the columns, and look at some", 100 * wrong.mean())  # fmt: skip
    return wrong


def ranks(target: NDArray[np.int64], score: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) place of each photo within its class, 0 the lowest score; and (C + 1,) photos of the classes -1, 0, 1, ..."""
    target = target + 1
    counts = np.bincount(target)
    order = np.lexsort((score, target))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    rank = np.empty(len(target), np.int64)
    rank[order] = np.arange(len(target)) - starts[target[order]]
    return rank, counts


def floors(counts: NDArray[np.int64], share: float, count: int) -> NDArray[np.int64]:
    """How many photos of each class stay, whatever is said of them."""
    return np.minimum(counts, np.maximum(count, np.ceil(share * counts))).astype(np.int64)


def attractor_classes(
    labels: NDArray[np.int64], suggested: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.bool_]:
    """(C,) True of a class that the photos of some tail class are most often taken for, all of them at a tie.

    No photo should be relabelled as one of these: it is where a rare product's own photos end up. The tail is the third of the
    classes with fewest photos.

    Args:
        labels: (N,) classes; -1 is passed over.
        suggested: (N,) what they are taken for, as `suggest_labels` gives it.
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
    """(N,) weights in [0, 1] for a training on all photos: the quality itself, and at least 0.5 for a class's floor of best.

    Soft weights beat hard drops wherever we measured both. A label of quality 0.1 still says a little, and the photos on either
    side of a threshold hardly differ.

    Args:
        labels: (N,) classes; -1, which cannot be judged, weighs 1.
        quality: (N,) in [0, 1], as `label_quality` gives it.
        floor_share: in [0, 1].
        floor_count: photos, >= 1.

    Raises:
        CleaningError: a quality outside [0, 1], another N, or a floor out of range.
    """
    _check(floor_share, floor_count, 1.0)
    if np.shape(quality) != np.shape(labels):
        raise CleaningError(f"quality: shape {np.shape(quality)} for labels {np.shape(labels)}; give one to each photo")
    if not ((quality >= 0) & (quality <= 1)).all():
        raise CleaningError("quality: NaN or outside [0, 1]; give what label_quality returned")
    rank, counts = ranks(labels, quality)
    best = rank >= (counts - floors(counts, floor_share, floor_count))[labels + 1]
    weights = np.where(best, np.maximum(quality, 0.5), quality).astype(np.float32)
    weights[labels < 0] = 1
    return weights


def _check(floor_share: float, floor_count: int, budget: float) -> None:
    if not 0 <= floor_share <= 1:
        raise CleaningError(f"floor_share: {floor_share} is outside [0, 1]; it is the share of a class that stays")
    if floor_count < 1:
        raise CleaningError(f"floor_count: {floor_count} is below 1; no class may be emptied")
    if not 0 <= budget <= 1:
        raise CleaningError(f"budget: {budget} is outside [0, 1]; it is a share of the photos")
