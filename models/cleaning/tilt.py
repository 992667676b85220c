"""A prior of confusions: wrong labels lean towards classes whose names are like that of the true class.

P(given = y | true = j) is proportional to exp(tilt * likeness of the names of j and y). The tilt is learnt from the
confusions that are found, as the least value that they support: names that say nothing about them leave it at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cleaning.names import Names
from models.cleaning.noise import Pairs

SAMPLE = 512  # classes that stand for all, where there are more
BINS = 64  # of likeness
SURE = 2.0  # standard errors that are taken from a tilt, so that chance leaves none
MOST_TILT = 12.0


@dataclass(frozen=True)
class NamePrior:
    """Shares of the pairs among the wrong labels of their true class.

    Attributes:
        pairs: the E pairs that occur.
        likeness: (E,) of their names, in [0, 1].
        rest: (C, BINS) number of the classes that form no pair with each true class, by likeness from 0 to 1.
        even: share of every class at a tilt of 0.
    """

    pairs: Pairs
    likeness: NDArray[np.float32]
    rest: NDArray[np.float32]
    even: float

    def shares(self, tilt: float) -> NDArray[np.float64]:
        """(E,) P(given | true) if the label is wrong by habit."""
        if tilt == 0:
            return np.full(len(self.pairs), self.even)
        total = self._moments(tilt)[0]
        return np.asarray(np.exp(tilt * self.likeness) / total[self.pairs.true])

    def learn(self, tilt: float, count: NDArray[np.float64]) -> float:
        """The tilt after a Newton step of at most 1 towards the least one that the confusions support.

        A pair that recurs is one habit. It counts once, or a class that is often swapped for one other would decide alone.

        Args:
            count: (E,) expected wrong labels by habit of each pair.
        """
        habits = -np.expm1(-count)
        of_class = self.pairs.of_true(habits)
        _, mean, variance = self._moments(tilt)
        slope, curve = float(habits @ self.likeness - of_class @ mean), float(of_class @ variance)
        if curve < 1e-9:
            return 0.0
        move = (slope - SURE * np.sqrt(curve)) / curve
        return float(np.clip(tilt + np.clip(move, -1, 1), 0, MOST_TILT))

    def _moments(self, tilt: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(C,) sums of exp(tilt * likeness) over all other classes, mean and variance of the likeness under the prior."""
        level = np.linspace(0, 1, BINS)
        weight, own = np.exp(tilt * level), np.exp(tilt * self.likeness.astype(np.float64))
        total, first, second = (
            self.pairs.of_true(own * self.likeness**power) + self.rest @ (weight * level**power) for power in range(3)
        )
        total = np.maximum(total, 1e-9)
        mean = first / total
        return total, mean, second / total - mean**2


def name_prior(names: Sequence[str] | None, pairs: Pairs, present: NDArray[np.bool_]) -> NamePrior:
    """The prior of these pairs.

    The names of all classes are compared with those of the pairs, and beyond 512 classes with a sample of all others:
    C x C of 50,030 classes would take 10 GB.

    Args:
        names: of the C classes; None: even shares.
        present: (C,) classes that have photos; only these can be given.
    """
    num_present = int(present.sum())
    even = 1 / max(1, num_present - 1)
    if names is None:
        return NamePrior(pairs, np.zeros(len(pairs), np.float32), np.zeros((len(present), BINS), np.float32), even)
    vectors = Names(names)
    rest = _rest(vectors, pairs, np.flatnonzero(present))
    others = num_present - present - pairs.of_true(np.ones(len(pairs)))
    rest *= (others / np.maximum(rest.sum(axis=1), 1))[:, None]
    return NamePrior(pairs, np.clip(vectors.likeness(pairs.true, pairs.given), 0, 1), rest, even)


def _rest(names: Names, pairs: Pairs, present: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, BINS) number of classes of a sample that form no pair with each class, by likeness."""
    sample = present
    if len(present) > SAMPLE:
        sample = np.sort(np.random.default_rng(0).choice(present, SAMPLE, replace=False))
    column = np.full(len(names), -1)
    column[sample] = np.arange(len(sample))
    rest = np.zeros((len(names), BINS), np.float32)
    for rows, likeness in names.to_all(sample):
        level = np.rint(np.clip(likeness, 0, 1) * (BINS - 1)).astype(np.int64)
        known = slice(*np.searchsorted(pairs.true, [rows.start, rows.stop]))
        true, given = pairs.true[known] - rows.start, column[pairs.given[known]]
        level[true[given >= 0], given[given >= 0]] = BINS
        own = column[rows]
        level[np.flatnonzero(own >= 0), own[own >= 0]] = BINS  # no class is given for itself
        cell = level + (BINS + 1) * np.arange(len(level))[:, None]
        counts = np.bincount(cell.ravel(), minlength=(BINS + 1) * len(level)).reshape(len(level), BINS + 1)
        rest[rows] = counts[:, :BINS]
    return rest
