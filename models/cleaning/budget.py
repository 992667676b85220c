"""Order of review under a budget: which photos, looked at by a person, raise mean-class accuracy most.

What a class gains from one more right photo falls with the number that it has: 1 / (n + FEW), n the sum of the label
qualities of its photos that are used. A person's look at a photo of label y and best other class s gives

- to s the photo, if its label is wrong: (1 - quality) / (n_s + FEW);
- to y, if the photo is used, the loss of a wrong one: (1 - quality) / (n_y + FEW);
- to y, if the photo is a label issue, which training leaves out, a right one: quality / (n_y + FEW).

Photos are taken one after another, and each adds to the classes that it will probably help, so no class takes the whole
budget. The worst scores first would spend it on large classes, where photos are many and one more changes nothing.
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
    to_suggested, to_label = 1 - score, np.where(issue, score, 1 - score)
    value = to_suggested / having[suggested] + to_label / having[labels]
    most = min(len(value), CANDIDATES * count)
    rows = np.argpartition(-value, most - 1)[:most] if most else np.zeros(0, np.int64)
    return _taken(
        rows, value, np.stack([suggested, labels], 1), np.stack([to_suggested, to_label], 1), having, count=count
    )


def _taken(
    rows: NDArray[np.int64], value: NDArray[np.float64], classes: NDArray[np.integer], gain: NDArray[np.float64],
    having: NDArray[np.float64], *, count: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Greedy choice: values only fall as classes gain, so a photo whose fresh value is still on top is the best one."""
    heap = [(-float(value[row]), int(row)) for row in np.sort(rows)]
    heapq.heapify(heap)
    taken: list[int] = []
    while heap and len(taken) < count:
        _, row = heapq.heappop(heap)
        fresh = float((gain[row] / having[classes[row]]).sum())
        if heap and fresh < -heap[0][0]:
            heapq.heappush(heap, (-fresh, row))
            continue
        taken.append(row)
        np.add.at(having, classes[row], gain[row])
    return np.array(taken, np.int64)
