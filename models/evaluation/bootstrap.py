"""What a step is worth on photos that judge it, and how sure that is. Arrays in, numbers out; no torch.

A step stays where the lower bootstrap bound of what it gains is above zero. Both sides are asked about the same photos, so
what they agree on cancels: two classifiers that answer mostly alike differ by much less than either is uncertain.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000


@dataclass(frozen=True)
class Gain:
    """Mean-class accuracy before and after a step on the same photos, shares in [0, 1]; NaN without photos.

    low: lower end of the one-sided bootstrap interval of after - before.
    photos, classes: how many judged; a class without such a photo has no say.
    stays: whether the step is taken: it is proven, or there is nothing to judge by and the recipe's word counts.
    """

    before: float
    after: float
    low: float
    photos: int
    classes: int
    stays: bool

    def to_dict(self) -> dict[str, object]:
        """For JSON; None for NaN."""
        plain = {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {key: None if value != value else value for key, value in plain.items()}


def gain(
    before: NDArray[np.bool_], after: NDArray[np.bool_], target: NDArray[np.int64], *, confidence: float, seed: int = 0
) -> Gain:
    """What a step gains on the photos that judge.

    Args:
        before, after: (N,) whether each photo was recognised without and with the step; N may be 0.
        target: (N,) classes of the photos, all >= 0.
        confidence: in [0, 1), one-sided; 0.5 asks only that the step gains more often than not, 0 asks nothing.
        seed: of the bootstrap draws.
    """
    if len(target) == 0:
        return Gain(math.nan, math.nan, math.nan, 0, 0, stays=True)
    share = class_share(target)
    one, other = (float((hit * share).sum() / share.sum()) for hit in (before, after))
    low = float(np.quantile(differences(after, before, target, seed=seed, draws=DRAWS), 1 - confidence))
    return Gain(one, other, low, len(target), len(np.unique(target)), stays=confidence == 0 or low > 0)


def standard_error(
    one: NDArray[np.bool_], other: NDArray[np.bool_], target: NDArray[np.int64], *, seed: int, draws: int = 200
) -> float:
    """Of the difference in mean-class accuracy between two rows of hits (N,) on the same photos."""
    return float(differences(one, other, target, seed=seed, draws=draws).std())


def differences(
    one: NDArray[np.bool_], other: NDArray[np.bool_], target: NDArray[np.int64], *, seed: int, draws: int
) -> NDArray[np.float64]:
    """(draws,) differences in mean-class accuracy on photos drawn with replacement, as many as there are."""
    share, rng = class_share(target), np.random.default_rng(seed)
    each = (one.astype(np.float64) - other) * share
    drawn = (rng.integers(len(target), size=len(target)) for _ in range(draws))  # one at a time: never draws x N
    return np.array([each[rows].sum() / share[rows].sum() for rows in drawn])


def class_share(target: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) weight of each photo with which all classes weigh the same."""
    share: NDArray[np.float64] = 1 / np.bincount(target)[target]
    return share


def auroc(score: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """How often one of these scores (N,) is larger than one of the others (M,); ties count half. In [0, 1]; N, M > 0."""
    _, place, counts = np.unique(np.concatenate([score, others]), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    num = len(score)
    return float(rank[:num].sum() - num * (num + 1) / 2) / (num * len(others))
