"""Label noise as a sparse confusion of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError

SMOOTHING = 10.0  # pseudo-photos of each class, mislabelled at the overall rate, evenly over the other classes
MOST_DENSE = 20_000  # classes; a dense matrix of more would not fit into memory


@dataclass(frozen=True)
class Noise:
    """Probabilities of given labels for each true class: E pairs of classes that occur; all others share the rest.

    Attributes:
        rate: share of wrong labels, in [0, 1].
        num_classes: C.
        kept: (C,) P(given = j | true = j).
        true: (E,) true class of each pair, never equal to the given one.
        given: (E,) given class of each pair.
        share: (E,) P(given | true) of each pair, in [0, 1].
        rest: (C,) P(given = j | true) for every class j that does not form a pair with the true one.
    """

    rate: float
    num_classes: int
    kept: NDArray[np.float64]
    true: NDArray[np.int64]
    given: NDArray[np.int64]
    share: NDArray[np.float64]
    rest: NDArray[np.float64]

    def matrix(self) -> NDArray[np.float64]:
        """(C, C) P(given = column | true = row), rows sum to 1. For tests and notebooks; training uses the pairs.

        Raises:
            CleaningError: more than 20,000 classes.
        """
        if self.num_classes > MOST_DENSE:
            raise CleaningError(
                f"num_classes: a dense matrix of {self.num_classes} classes does not fit into memory; "
                f"use at most {MOST_DENSE}, or the pairs in true, given and share"
            )
        dense = np.repeat(self.rest[:, None], self.num_classes, axis=1)
        dense[self.true, self.given] = self.share
        np.fill_diagonal(dense, self.kept)
        return dense


class Pairs:
    """The pairs of another candidate class and the label that occur: what could have been called what.

    Attributes:
        true, given: (E,) classes of each pair.
        index: (N, K - 1) int32 pair of each other candidate, E for none.
    """

    def __init__(self, ids: NDArray[np.int32], num_classes: int) -> None:
        """ids: (N, K) candidate classes, the label in column 0; -1 for none."""
        none = num_classes * num_classes
        keys = np.where(ids[:, 1:] < 0, none, ids[:, 1:].astype(np.int64) * num_classes + ids[:, :1])
        found, index = np.unique(keys, return_inverse=True)
        self.index: NDArray[np.int32] = index.reshape(keys.shape).astype(np.int32)
        self.num_classes, found = num_classes, found[found < none]
        self.true, self.given = found // num_classes, found % num_classes

    def __len__(self) -> int:
        return len(self.true)

    def sums(self, rows: slice, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(E,) sum of the values (n, K - 1) of these rows for each pair."""
        found = np.bincount(self.index[rows].ravel(), values.ravel(), minlength=len(self) + 1)
        return found[: len(self)].astype(np.float64, copy=False)

    def of_true(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(C,) sum over the pairs of each true class."""
        return np.bincount(self.true, values, minlength=self.num_classes).astype(np.float64, copy=False)

    def noise(self, right: NDArray[np.float64], wrong: NDArray[np.float64]) -> Noise:
        """Label noise from the expected numbers of photos with a right label (C,) and of each pair (E,)."""
        total, others = float(right.sum() + wrong.sum()), max(1, self.num_classes - 1)
        rate = float(np.clip(wrong.sum() / max(1e-9, total), 0.01, 0.9))
        size = right + self.of_true(wrong) + SMOOTHING
        rest = SMOOTHING * rate / others / size
        return Noise(
            rate=float(wrong.sum() / total) if total else 0.0,
            num_classes=self.num_classes,
            kept=(right + SMOOTHING * (1 - rate)) / size,
            true=self.true,
            given=self.given,
            share=wrong / size[self.true] + rest[self.true],
            rest=rest,
        )
