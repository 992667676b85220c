"""Input and output of every opponent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # of similarities at once


@dataclass(frozen=True)
class Evidence:
    """N photos with given labels, and what is known of them.

    labels: (N,) classes. probs: (N, C) by heads that did not see the photo. views: (2, N, d) features, plain and mirrored.
    """

    labels: NDArray[np.int64]
    probs: NDArray[np.float32]
    views: NDArray[np.float32]
    seed: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.probs.shape[1]

    @cached_property
    def unit(self) -> NDArray[np.float32]:
        """(N, d) unit vectors of both views' sum, from the mean of all photos, as our rule compares photos."""
        return directions(self.views.sum(0))


@dataclass(frozen=True)
class Opinion:
    """wrong: (N,) true where the label is called wrong by the method's own cut. suspicion: (N,) larger for worse labels."""

    wrong: NDArray[np.bool_]
    suspicion: NDArray[np.floating]


def directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, d) unit vectors from the mean of all rows."""
    centred = features - features.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12), np.float32)


def nearest(unit: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N, k) rows of the most similar other photos, nearest first, and their cosines; k is count, N - 1 at most."""
    k = min(count, len(unit) - 1)
    rows, cosines = np.empty((len(unit), k), np.int64), np.empty((len(unit), k), np.float32)
    for start in range(0, len(unit), ROWS):
        cosine = unit[start : start + ROWS] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(cosine, near, 1), axis=1, kind="stable"), 1)
        rows[start : start + len(near)], cosines[start : start + len(near)] = near, np.take_along_axis(cosine, near, 1)
    return rows, cosines


def shares(labels: NDArray[np.int64], weight: NDArray[np.floating], *, num_classes: int) -> NDArray[np.float64]:
    """(N, C) weight (N, k) of the neighbours with each label (N, k), as shares of the row's total."""
    table = np.zeros((len(labels), num_classes))
    np.add.at(table, (np.arange(len(labels))[:, None], labels), weight)
    return np.asarray(table / np.maximum(table.sum(1, keepdims=True), 1e-12))


def outvoted(share: NDArray[np.floating], labels: NDArray[np.int64]) -> Opinion:
    """Opinion of shares (N, C): the label is wrong if another class has more; suspicion is the other's lead."""
    rest = share.copy()
    rest[np.arange(len(labels)), labels] = -np.inf
    lead = rest.max(1) - share[np.arange(len(labels)), labels]
    return Opinion(lead > 0, lead)
