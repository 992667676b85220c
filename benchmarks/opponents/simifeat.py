"""SimiFeat-V, training-free detection by voting (Zhu et al., ICML 2022, arXiv 2110.06283).

In each round the K nearest photos, the photo itself among them, vote with their similarity in an augmented view; the
label is called wrong if it is outvoted in more than half of the rounds. The paper augments in ROUNDS rounds and uses the
labels of a random part each time; here a round is a random part of the photos in one of the two views.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opponents.evidence import Evidence, Opinion, directions, nearest, outvoted, shares

K, ROUNDS, PART = 10, 10, 0.75  # PART: of the photos in a round


def simifeat(evidence: Evidence) -> Opinion:
    """Opinion by rounds of votes."""
    units = [directions(view) for view in evidence.views]
    draw, size = np.random.default_rng(evidence.seed), len(evidence.labels)
    wrong, lead, seen = np.zeros(size), np.zeros(size), np.zeros(size)
    for number in range(ROUNDS):
        rows = np.sort(draw.permutation(size)[: max(3, int(PART * size))])
        one = vote(units[number % len(units)][rows], evidence.labels[rows], num_classes=evidence.num_classes)
        wrong[rows] += one.wrong
        lead[rows] += one.suspicion
        seen[rows] += 1
    seen = np.maximum(seen, 1)
    return Opinion(wrong / seen > 0.5, lead / seen)


def vote(unit: NDArray[np.float32], labels: NDArray[np.int64], *, num_classes: int) -> Opinion:
    """Opinion of one round.

    The photo votes with the similarity that continues the line of its first two neighbours, as in the published code.
    """
    near, cosine = nearest(unit, max(2, K - 1))
    own = 2 * cosine[:, :1] - cosine[:, 1:2]
    weight = np.maximum(np.concatenate([own, cosine], 1)[:, :K], 0)
    voters = np.concatenate([labels[:, None], labels[near]], 1)[:, :K]
    return outvoted(shares(voters, weight, num_classes=num_classes), labels)
