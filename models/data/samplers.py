"""Which photos an epoch draws, and in which order.

Class j is drawn in proportion to n_j^power (Kang et al., ICLR 2020, equation 1): power 1 is instance-balanced, 0.5
square-root, 0 class-balanced. An epoch has as many draws as there are photos, whatever the power: the published sampler's
epoch of max(n) x C draws would be 400 million on AliProducts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_epoch(labels: NDArray[np.int64], *, power: float, seed: int, epoch: int) -> NDArray[np.int64]:
    """Positions (N,) into labels for one epoch; the same arguments give the same order, so a resumed run repeats it."""
    rng = np.random.default_rng((seed, epoch))
    if power == 1.0:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    weight = counts[labels] ** (power - 1.0)
    return rng.choice(len(labels), size=len(labels), p=weight / weight.sum())


def folds(labels: NDArray[np.int64], ids: NDArray[np.object_], *, num_folds: int) -> NDArray[np.int64]:
    """Fold of each sample (N,), stratified: every class is spread over the folds as evenly as it goes.

    Decided by id, so a sample keeps its neighbours when rows are reordered. A class with fewer photos than folds is
    simply absent from some held-out parts.
    """
    order = np.lexsort((ids.astype(str), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    position = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    fold[order] = (position + labels[order]) % num_folds  # the class offset evens out the folds' sizes
    return fold
