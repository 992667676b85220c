"""WANN, weighted adaptive nearest neighbours (Di Salvo et al., arXiv 2408.14358), with the published 11 to 51 neighbours.

The neighbourhood of a photo is the smallest odd number of neighbours, from K_MIN on, whose majority is its label, or
K_MAX if there is none; the reliability of its label is one over that number. A photo is classified by its nearest
neighbour's number of neighbours, each voting with its reliability. The paper classifies new photos; here each photo is
classified by the others, and its label is called wrong if the vote is for another class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opponents.evidence import Evidence, Opinion, nearest, outvoted, shares

K_MIN, K_MAX = 11, 51


def wann(evidence: Evidence) -> Opinion:
    """Opinion by the vote of reliable neighbours."""
    near, _ = nearest(evidence.unit, K_MAX)
    labels = evidence.labels[near]
    size = neighbourhoods(labels, evidence.labels, num_classes=evidence.num_classes)
    votes = np.where(np.arange(near.shape[1]) < size[near[:, 0]][:, None], 1 / size[near], 0)
    return outvoted(shares(labels, votes, num_classes=evidence.num_classes), evidence.labels)


def neighbourhoods(near: NDArray[np.int64], labels: NDArray[np.int64], *, num_classes: int) -> NDArray[np.int64]:
    """(N,) number of neighbours, of the labels (N, k) nearest first, that agree with the label (N,) of each photo."""
    size, rows = np.full(len(labels), K_MAX), np.arange(len(labels))
    counts, open_rows = np.zeros((len(labels), num_classes), np.int64), np.ones(len(labels), bool)
    for k in range(1, min(near.shape[1], K_MAX - 1) + 1):
        counts[rows, near[:, k - 1]] += 1
        if k >= K_MIN and (k - K_MIN) % 2 == 0:
            agreed = open_rows & (counts.argmax(1) == labels)
            size[agreed], open_rows = k, open_rows & ~agreed
    return size
