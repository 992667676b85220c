"""How well classes were told apart: all photos, the mean of the classes, and the head, middle and tail thirds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    """Shares in [0, 1], NaN where no photo was asked. Thirds are of the classes, by number of training photos, each the mean of its classes."""

    top1: float
    top5: float
    mean_class: float
    head: float
    middle: float
    tail: float

    def to_dict(self) -> dict[str, float]:
        return {key: round(value, 6) for key, value in asdict(self).items()}


def thirds(train_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C,) 0 for the third of the classes with most training photos, 1 for the middle, 2 for the tail."""
    order = np.argsort(-train_counts, kind="stable")
    third = np.empty(len(train_counts), np.int64)
    third[order] = np.arange(len(train_counts)) * 3 // len(train_counts)
    return third


def accuracy(ranked: NDArray[np.int64], target: NDArray[np.int64], *, train_counts: NDArray[np.int64]) -> Accuracy:
    """Accuracy of ranked answers.

    Args:
        ranked: (N, K) classes, best first.
        target: (N,) true classes; a photo with -1 (a class the network does not know) counts as wrong in top1 and top5 alone.
        train_counts: (C,) training photos per class, which decides the thirds.
    """
    hit = ranked[:, 0] == target
    known = target >= 0
    shown = np.bincount(target[known], minlength=len(train_counts))
    right = np.bincount(target[known & hit], minlength=len(train_counts))
    present = shown > 0
    per_class = np.divide(right, shown, out=np.full(len(shown), np.nan), where=present)
    group = thirds(train_counts)

    def share(right: NDArray[np.bool_] | NDArray[np.float64]) -> float:
        return float(right.mean()) if len(right) else float("nan")

    return Accuracy(
        top1=share(hit),
        top5=share((ranked[:, :5] == target[:, None]).any(1)),
        mean_class=share(per_class[present]),
        head=share(per_class[present & (group == 0)]),
        middle=share(per_class[present & (group == 1)]),
        tail=share(per_class[present & (group == 2)]),
    )
