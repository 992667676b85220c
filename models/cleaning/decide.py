"""Which labels to stop believing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def find_label_errors(
    target: NDArray[np.int64],
    margin: NDArray[np.float64],
    *,
    threshold: float = -0.5,
    floor_share: float = 0.3,
    floor_count: int = 5,
) -> NDArray[np.bool_]:
    """(N,) True where the label is judged wrong: the margin is below the threshold, worst first, down to the class's floor.

    A class of n photos keeps at least min(n, max(floor_count, floor_share n)) of them. Without the floor, cleaning by
    prediction strips the tail: a rare product looks like noise to a network that saw it five times (RoLT, Wei et al. 2021).

    Args:
        target: (N,) classes of the labels; -1, a class that no network knows, is never judged.
        margin: (N,) log margins, as `log_margin` gives them.
        threshold: below 0 is doubt; -0.5 held its ground on human and synthetic noise.
        floor_share: in [0, 1].
        floor_count: photos, >= 1.
    """
    suspect = (margin < threshold) & (target >= 0)
    target = target + 1  # so that the unknown are a class of their own
    counts = np.bincount(target)
    floor = np.minimum(counts, np.maximum(floor_count, np.ceil(floor_share * counts))).astype(np.int64)
    order = np.lexsort((margin, ~suspect, target))  # by class, suspects first, worst first
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.empty(len(target), np.int64)
    rank[order] = np.arange(len(target)) - starts[target[order]]
    return suspect & (rank < (counts - floor)[target])
