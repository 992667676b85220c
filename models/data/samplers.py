"""Which photos an epoch draws, and in which order.

Class j is drawn in proportion to n_j^power (Kang et al., ICLR 2020, equation 1): power 1 is instance-balanced, 0.5
square-root, 0 class-balanced; progressive goes from there to class-balanced over the epochs (equation 2). An epoch has as many
draws as there are photos, or as `train.epoch_length` says: the published sampler's epoch of max(n) x C draws would be
400 million on AliProducts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.recipe.config import Train


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The epochs of one training; each depends on its number and the seed alone, so a resumed run repeats it.

    target: (N,) classes. score: (N,) how much each label is believed, NaN where nobody judged it; for train.best_epochs.
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
        """(length,) positions in `target`."""
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
    """Positions (length,) into labels (N,) for one epoch; the same arguments give the same order.

    Args:
        power: in [0, 1]. At 1 every photo comes once in every N draws, whatever the length of an epoch; below, every class has its
            share of each epoch to within one draw.
        balanced: in [0, 1], the share of the draws that goes to all classes alike.
        length: draws; 0: N.
    """
    length = length or len(labels)
    if power == 1.0 and balanced == 0.0:
        return _in_turn(len(labels), length=length, seed=seed, epoch=epoch)
    rng = np.random.default_rng((seed, epoch))
    counts = np.bincount(labels)
    ends = length * np.cumsum(class_shares(counts, power=power, balanced=balanced))
    evenly = np.searchsorted(ends, np.arange(length) + rng.random(), side="right")
    return _photos_of(rng.permutation(evenly.clip(max=len(counts) - 1)), labels, rng)


def class_shares(counts: NDArray[np.int64], *, power: float, balanced: float = 0.0) -> NDArray[np.float64]:
    """(C,) probability of each class: (1 - balanced) n^power / sum + balanced / classes; 0 for a class without photos."""
    present = counts > 0
    raised = np.where(present, counts.clip(1) ** power, 0.0)
    share: NDArray[np.float64] = (1 - balanced) * raised / raised.sum() + balanced * present / present.sum()
    return share


def best_of_class(labels: NDArray[np.int64], score: NDArray[np.float32], *, count: int) -> NDArray[np.int64]:
    """Sorted positions of the `count` best-scored photos of each class, all of a smaller one; NaN is worst, then the last."""
    by_class = np.lexsort((-np.nan_to_num(score, nan=-np.inf), labels))
    return np.sort(by_class[_place(labels, by_class) < count])


def _in_turn(n: int, *, length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The epoch's part of an endless row of permutations."""
    start = epoch * length
    turns = range(start // n, (start + length - 1) // n + 1)
    row = np.concatenate([np.random.default_rng((seed, turn)).permutation(n) for turn in turns])
    return row[start - turns[0] * n :][:length]


def _photos_of(drawn: NDArray[np.int64], labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A photo for each drawn class; none a second time before all of its class came once."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    order = np.argsort(drawn, kind="stable")
    place = np.empty(len(drawn), np.int64)
    place[order] = _place(drawn, order)
    return by_class[(np.cumsum(counts) - counts)[drawn] + place % counts[drawn]]


def _place(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many of the same label come before each in `order`, which goes by label."""
    counts = np.bincount(labels)
    return np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]


def folds(labels: NDArray[np.int64], ids: NDArray[np.object_], *, num_folds: int) -> NDArray[np.int64]:
    """Fold of each sample (N,), stratified: every class is spread over the folds as evenly as it goes.

    Decided by id, so a sample keeps its neighbours when rows are reordered. A class with fewer photos than folds is
    simply absent from some held-out parts.
    """
    order = np.lexsort((ids.astype(str), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = (_place(labels, order) + labels[order]) % num_folds  # the class offset evens out the folds' sizes
    return fold
