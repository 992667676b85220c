"""Label noise as a sparse confusion of classes, estimated together with the class of each photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError

SMOOTHING = 10.0  # pseudo-photos of each class, mislabelled at the overall rate, evenly over the other classes
STEPS = 5  # of expectation maximisation
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


def posterior(
    evidence: NDArray[np.float32], ids: NDArray[np.int32], *, num_classes: int, trust: float
) -> tuple[NDArray[np.float32], Noise]:
    """(N, K) probability that each candidate is the class of the photo, and the label noise estimated with it.

    Expectation maximisation: P(class j | photo, label y) is proportional to exp(evidence_j) T[j, y]^trust, where T[j,
    y] is the share of photos of class j with the label y. The fewer photos of class j have the label y, the more
    evidence it takes to call y a mistake for j: similar products are confused in bulk, random errors hardly hit a pair
    twice.

    Args:
        evidence: (N, K) log evidence for each candidate, -inf for none.
        ids: (N, K) candidate classes, the label in column 0; -1 for none.
        num_classes: C.
        trust: in [0, 1]; 1 is Bayes' rule, which assumes that errors do not depend on the photo. 0 ignores T.
    """
    keys = np.where(ids[:, 1:] < 0, -1, ids[:, 1:].astype(np.int64) * num_classes + ids[:, :1])
    pairs, pair = np.unique(keys, return_inverse=True)
    true: NDArray[np.int32] = (pairs // num_classes).astype(np.int32)
    pair_index: NDArray[np.int32] = pair.reshape(keys.shape).astype(np.int32)
    del keys, pair  # these take 8 bytes a value, pair_index 4
    probs = _softmax(evidence)
    for _ in range(STEPS):
        kept, share, _ = _confusion(probs, ids, true, pair_index, num_classes)
        probs = _softmax(evidence + np.float32(trust) * _log_weight(kept, share, ids, pair_index))
    kept, share, rest = _confusion(probs, ids, true, pair_index, num_classes)
    real = pairs >= 0
    rate = 1 - float(probs[:, 0].mean()) if len(ids) else 0.0
    noise = Noise(rate, num_classes, kept, pairs[real] // num_classes, pairs[real] % num_classes, share[real], rest)
    return probs, noise


def _confusion(
    probs: NDArray[np.float32],
    ids: NDArray[np.int32],
    true: NDArray[np.int32],
    pair: NDArray[np.int32],
    num_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """P(given | true): (C,) for the class itself, (E,) for the pairs, (C,) for any other class."""
    kept = np.bincount(ids[:, 0], weights=probs[:, 0], minlength=num_classes)
    swapped = np.bincount(pair.ravel(), weights=probs[:, 1:].ravel(), minlength=len(true))
    swapped[true < 0] = 0
    rate = np.clip(swapped.sum() / max(1, len(ids)), 0.01, 0.9)
    size = kept + np.bincount(np.maximum(true, 0), weights=swapped, minlength=num_classes) + SMOOTHING
    rest = SMOOTHING * rate / max(1, num_classes - 1) / size
    return (kept + SMOOTHING * (1 - rate)) / size, swapped / size[true] + rest[true], rest


def _log_weight(
    kept: NDArray[np.float64], share: NDArray[np.float64], ids: NDArray[np.int32], pair: NDArray[np.int32]
) -> NDArray[np.float32]:
    """(N, K) log T[candidate, label]."""
    weight = np.empty(ids.shape, np.float32)
    weight[:, 0] = np.log(kept).astype(np.float32)[ids[:, 0]]
    weight[:, 1:] = np.log(share).astype(np.float32)[pair]
    return weight


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    values /= values.sum(axis=1, keepdims=True)
    return values
