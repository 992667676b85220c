"""Validation gain of a step, with its bootstrap bound; and AUROC. Works on arrays, without torch.

A step is kept if the lower bootstrap bound of its gain is above zero. The comparison is paired: both sides answer the
same photos, so shared errors cancel, and the difference is far more certain than the accuracy of either side.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
INTERVAL = (0.05, 0.95)  # quantiles of the draws, for people to see


@dataclass(frozen=True)
class Gain:
    """Mean-class accuracy before and after a step on the same photos, in [0, 1]; NaN without photos.

    low: lower end of the one-sided bootstrap interval of after - before, which decides.
    interval: ends of its two-sided bootstrap interval at 90 %, whatever the step has to prove.
    photos, classes: numbers of selection photos and of their classes; other classes do not count.
    stays: True if the step is kept: its gain is proven, or that it loses less than it may; or there are no photos and the
        recipe decides.
    """

    before: float
    after: float
    low: float
    interval: tuple[float, float]
    photos: int
    classes: int
    stays: bool

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; None for NaN."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if not isinstance(value, float) else None if math.isnan(value) else round(value, 6)


def gain(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    target: NDArray[np.int64],
    *,
    confidence: float,
    fall: float = 0.0,
    seed: int = 0,
) -> Gain:
    """Validation gain of a step.

    Args:
        before, after: (N,) True for each photo recognised without and with the step; N may be 0.
        target: (N,) classes of the photos, all >= 0.
        confidence: one-sided, in [0, 1); 0.5 only asks that the step gains in most draws, 0 keeps every step.
        fall: mean-class accuracy that the step may lose, in [0, 1].
        seed: seed of the bootstrap draws.
    """
    if len(target) == 0:
        return Gain(math.nan, math.nan, math.nan, (math.nan, math.nan), 0, 0, stays=True)
    share = class_share(target)
    accuracy, new_accuracy = (float((hit * share).sum() / share.sum()) for hit in (before, after))
    drawn = differences(after, before, target, seed=seed, draws=DRAWS)
    low, *interval = np.quantile(drawn, [1 - confidence, *INTERVAL]).tolist()
    stays = confidence == 0 or low > -fall
    return Gain(
        accuracy, new_accuracy, low, (interval[0], interval[1]), len(target), len(np.unique(target)), stays=stays
    )


def standard_error(
    one: NDArray[np.bool_], other: NDArray[np.bool_], target: NDArray[np.int64], *, seed: int, draws: int = 200
) -> float:
    """Bootstrap standard error of the difference in mean-class accuracy between two arrays of hits (N,)."""
    return float(differences(one, other, target, seed=seed, draws=draws).std())


def differences(
    one: NDArray[np.bool_], other: NDArray[np.bool_], target: NDArray[np.int64], *, seed: int, draws: int
) -> NDArray[np.float64]:
    """(draws,) differences in mean-class accuracy, one - other, on bootstrap samples of the photos."""
    share, rng = class_share(target), np.random.default_rng(seed)
    difference = (one.astype(np.float64) - other) * share
    drawn = (rng.integers(len(target), size=len(target)) for _ in range(draws))  # one at a time, to save memory
    return np.array([difference[rows].sum() / share[rows].sum() for rows in drawn])


def class_share(target: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) weights of the photos that give all classes the same total weight."""
    share: NDArray[np.float64] = 1 / np.bincount(target)[target]
    return share


def auroc(score: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """AUROC: probability that one of these scores (N,) exceeds one of the others (M,); ties count half; N, M > 0."""
    _, position, counts = np.unique(np.concatenate([score, others]), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[position]
    num = len(score)
    return float(rank[:num].sum() - num * (num + 1) / 2) / (num * len(others))
