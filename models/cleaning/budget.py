"""Order of review under a budget: which photos, looked at by a person, raise mean-class accuracy most.

A look is worth what it can change: a label of quality q is right with probability q, and a photo on which the networks
agree anyway, with its label or against it, teaches them little. So it is worth q (1 - q), times what one more right photo
gains in the label's class or in the best other one. That falls with the photos that a class has: 1 / (n + FEW), n the sum
of the label qualities of its photos that are used.

Photos are taken one after another, and each adds to the classes that it will probably help, so no class takes the whole
budget. The worst scores first would spend it on photos that are certainly wrong, which training leaves out anyway, and on
large classes, where one more photo changes nothing.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError

FEW = 2.0  # photos that a class is as good as given
CANDIDATES = 30  # photos that are compared for each one that is taken


def worth_looking_at(
    labels: NDArray[np.integer],
    quality: NDArray[np.floating],
    suggested: NDArray[np.integer],
    *,
    count: int,
    is_issue: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """(min(count, N),) positions of photos, the one that is worth most first. Time O(N + count log count).

    Args:
        labels: (N,) classes; -1 for a photo without one, which only its suggested class can gain.
        quality: (N,) label quality in [0, 1]; NaN, for a photo that was never scored, is 1.
        suggested: (N,) best class other than the label; -1: none.
        is_issue: (N,) True for photos that training leaves out; None: those of a quality below 0.5.

    Raises:
        CleaningError: another N, a quality out of range, or a count below 0.
    """
    if count < 0 or np.shape(quality) != np.shape(labels) or np.shape(suggested) != np.shape(labels):
        raise CleaningError(
            f"count {count}, labels {np.shape(labels)}, quality {np.shape(quality)}, suggested {np.shape(suggested)}: give one "
            "value for each photo, and a count of 0 or more"
        )
    score = np.where(np.isnan(quality), 1.0, np.where(labels < 0, 0.0, quality))
    if ((score < 0) | (score > 1)).any():
        raise CleaningError("quality: outside [0, 1]; pass the result of label_quality")
    issue = score < 0.5 if is_issue is None else is_issue
    used = np.where(issue | (labels < 0), 0.0, score)
    num_classes = int(max(labels.max(initial=-1), suggested.max(initial=-1))) + 1
    having = np.append(np.bincount(labels[labels >= 0], used[labels >= 0], minlength=num_classes) + FEW, np.inf)
    open_question = score * (1 - score) + np.where(labels < 0, 1.0, 0.0)
    value = open_question * (1 / having[suggested] + 1 / having[labels])
    most = min(len(value), CANDIDATES * count)
    rows = np.argpartition(-value, most - 1)[:most] if most else np.zeros(0, np.int64)
    gained = np.stack([1 - score, np.where(issue, score, 0)], 1)
    return _taken(rows, open_question, np.stack([suggested, labels], 1), gained, having, count=count)


def _taken(
    rows: NDArray[np.int64], open_question: NDArray[np.float64], classes: NDArray[np.integer], gained: NDArray[np.float64],
    having: NDArray[np.float64], *, count: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Greedy choice: values only fall as classes gain, so a photo whose fresh value is still on top is the best one."""

    def worth(row: int) -> float:
        return float(open_question[row] * (1 / having[classes[row]]).sum())

    heap = [(-worth(row), row) for row in np.sort(rows).tolist()]
    heapq.heapify(heap)
    taken: list[int] = []
    while heap and len(taken) < count:
        _, row = heapq.heappop(heap)
        fresh = worth(row)
        if heap and fresh < -heap[0][0]:
            heapq.heappush(heap, (-fresh, row))
            continue
        taken.append(row)
        np.add.at(having, classes[row], gained[row])
    return np.array(taken, np.int64)
