"""Accuracy over all photos, as the mean over the classes, and over the head, middle and tail thirds of the classes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in [0, 1]; NaN without photos.

    Head, middle and tail are means over the classes of each third, ordered by number of training photos.
    """

    top1: float
    top5: float
    mean_class: float
    head: float
    middle: float
    tail: float

    def to_dict(self) -> dict[str, float | None]:
        """Content for JSON; None for NaN."""
        return {key: None if math.isnan(value) else round(value, 6) for key, value in asdict(self).items()}


def thirds(train_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C,) 0 for the third of the classes with the most training photos (head), 1 for the middle, 2 for the tail."""
    order = np.argsort(-train_counts, kind="stable")
    third = np.empty(len(train_counts), np.int64)
    rank = np.arange(len(train_counts))
    third[order] = rank * 3 // len(rank) if len(rank) > 2 else 2 - rank[::-1]  # with few classes, the tail comes first
    return third


def accuracy(ranked: NDArray[np.int64], target: NDArray[np.int64], *, train_counts: NDArray[np.int64]) -> Accuracy:
    """Accuracy of ranked answers.

    Args:
        ranked: (N, K) classes, best first.
        target: (N,) true classes; -1 (a class that the network does not know) counts as an error, in top1 and top5
            only.
        train_counts: (C,) training photos per class, which define the thirds.
    """
    hit = ranked[:, 0] == target
    known = target >= 0
    total = np.bincount(target[known], minlength=len(train_counts))
    right = np.bincount(target[known & hit], minlength=len(train_counts))
    present = total > 0
    per_class = np.divide(right, total, out=np.full(len(total), np.nan), where=present)
    group = thirds(train_counts)

    return Accuracy(
        top1=_mean(hit),
        top5=_mean((ranked[:, :5] == target[:, None]).any(1)),
        mean_class=_mean(per_class[present]),
        head=_mean(per_class[present & (group == 0)]),
        middle=_mean(per_class[present & (group == 1)]),
        tail=_mean(per_class[present & (group == 2)]),
    )


def _mean(values: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    """Mean of the values; NaN for none, without numpy's warning."""
    return float(np.mean(values)) if len(values) else float("nan")
