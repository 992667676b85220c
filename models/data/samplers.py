"""Sampling of photos: the draws of an epoch, folds, and selections per class.

Class j is drawn in proportion to n_j^power (Kang et al., ICLR 2020, equation 1): power 1 is instance-balanced, 0.5
square-root, 0 class-balanced; progressive sampling moves from there to class-balanced over the epochs (equation 2). An
epoch has as many draws as there are photos, or `train.epoch_length`. The published sampler draws max(n) x C times,
which would be 400 million on AliProducts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.recipe.config import Train


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws of a training's epochs. Each depends only on its number and the seed, so that a resumed run repeats it.

    target: (N,) classes. score: (N,) label quality, NaN if a label was never scored; used by train.best_epochs.
    """

    target: NDArray[np.int64]
    score: NDArray[np.float32]
    settings: Train
    seed: int

    @property
    def length(self) -> int:
        """Draws of every epoch."""
        return self.settings.epoch_length or len(self.target)

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """(length,) positions in `target`, in the order of an epoch."""
        settings, left = self.settings, self.settings.epochs - epoch
        rows = np.arange(len(self.target))
        if left <= settings.best_epochs:
            rows = best_of_class(self.target, self.score, count=settings.best_photos)
        balanced = epoch / settings.epochs if settings.progressive else 0.0
        balanced = 1.0 if left <= settings.balanced_epochs else balanced
        drawn = draw_epoch(self.target[rows], power=settings.sampling_power, balanced=balanced, length=self.length,
                           seed=self.seed, epoch=epoch)  # fmt: skip
        return rows[drawn]


def draw_epoch(
    labels: NDArray[np.int64], *, power: float, seed: int, epoch: int, balanced: float = 0.0, length: int = 0
) -> NDArray[np.int64]:
    """(length,) positions in labels (N,) for one epoch; the same arguments give the same order.

    Args:
        power: in [0, 1]. At 1, every photo occurs once in every N draws, whatever the length of an epoch. Below 1,
            every class has its share of each epoch to within one draw.
        balanced: in [0, 1], the share of draws that is distributed equally over the classes.
        length: number of draws; 0: N.
    """
    length = length or len(labels)
    if power == 1.0 and balanced == 0.0:
        return _permuted(len(labels), length=length, seed=seed, epoch=epoch)
    rng = np.random.default_rng((seed, epoch))
    counts = np.bincount(labels)
    ends = length * np.cumsum(class_shares(counts, power=power, balanced=balanced))
    evenly = np.searchsorted(ends, np.arange(length) + rng.random(), side="right")
    return _photos_of(rng.permutation(evenly.clip(max=len(counts) - 1)), labels, rng)


def class_shares(counts: NDArray[np.int64], *, power: float, balanced: float = 0.0) -> NDArray[np.float64]:
    """(C,) probability of each class: (1 - balanced) n^power / sum + balanced / classes; 0 for an empty class."""
    present = counts > 0
    raised = np.where(present, counts.clip(1) ** power, 0.0)
    share: NDArray[np.float64] = (1 - balanced) * raised / raised.sum() + balanced * present / present.sum()
    return share


def best_of_class(labels: NDArray[np.int64], score: NDArray[np.float32], *, count: int) -> NDArray[np.int64]:
    """Sorted positions of the `count` best-scored photos of each class, or of all of a smaller class.

    NaN is the worst score; of equal scores, the first photos are taken.
    """
    by_class = np.lexsort((-np.nan_to_num(score, nan=-np.inf), labels))
    return np.sort(by_class[_rank_in_class(labels, by_class) < count])


def spread_over_classes(rows: NDArray[np.int64], target: NDArray[np.int64], *, count: int) -> NDArray[np.int64]:
    """(min(count, N),) of the rows (N,), spread evenly over their classes `target` (N,), ordered by class."""
    by_class = rows[np.argsort(target, kind="stable")]
    return by_class[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def _permuted(n: int, *, length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(length,) the epoch's section of an endless sequence of permutations of n positions."""
    start = epoch * length
    numbers = range(start // n, (start + length - 1) // n + 1)
    sequence = np.concatenate([np.random.default_rng((seed, number)).permutation(n) for number in numbers])
    return sequence[start - numbers[0] * n :][:length]


def _photos_of(drawn: NDArray[np.int64], labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) photos of drawn classes (n,); none is repeated before all photos of its class have been drawn."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    order = np.argsort(drawn, kind="stable")
    rank = np.empty(len(drawn), np.int64)
    rank[order] = _rank_in_class(drawn, order)
    return by_class[(np.cumsum(counts) - counts)[drawn] + rank % counts[drawn]]


def _rank_in_class(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) number of photos with the same label before each in `order` (N,), which is sorted by label."""
    counts = np.bincount(labels)
    return np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]


def folds(
    labels: NDArray[np.int64], ids: NDArray[np.object_] | NDArray[np.str_], *, num_folds: int
) -> NDArray[np.int64]:
    """(N,) fold of each photo, stratified: every class is spread over the folds as evenly as possible.

    Folds depend on ids and not on the order of rows. A class with fewer photos than folds is absent from some folds.
    """
    order = np.lexsort((ids.astype(str), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = (_rank_in_class(labels, order) + labels[order]) % num_folds  # the label evens out the folds' sizes
    return fold
