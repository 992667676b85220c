"""Accuracy of a linear classifier that learns from the photos that a method keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opponents.evidence import directions

RIDGE = 0.5  # in units of the mean eigenvalue, as the default rule's


def accuracy(
    features: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], truth: NDArray[np.int64]
) -> float:
    """Mean-class accuracy at test (m, d) of ridge regression on features (n, d) in which all classes have the same weight.

    In closed form: nothing is drawn or tuned. A class without a kept photo is never answered right.
    """
    unit = directions(np.concatenate([features, test]))
    x, num_classes = unit[: len(features)].astype(np.float64), int(max(labels.max(), truth.max())) + 1
    weight = 1 / np.maximum(np.bincount(labels, minlength=num_classes), 1)[labels]
    sums = np.zeros((num_classes, x.shape[1]))
    np.add.at(sums, labels, x * weight[:, None])
    moments = (x * weight[:, None]).T @ x
    moments[np.diag_indices(len(moments))] += RIDGE * weight.sum() / len(moments)
    scores = unit[len(features) :] @ np.linalg.solve(moments, sums.T)
    scores[:, np.bincount(labels, minlength=num_classes) == 0] = -np.inf
    answer = scores.argmax(1)
    hits = np.bincount(truth, answer == truth, minlength=num_classes)
    sizes = np.bincount(truth, minlength=num_classes)
    return float((hits[sizes > 0] / sizes[sizes > 0]).mean())
