"""LEMoN (Zhang et al., ICML 2025, arXiv 2407.18941) for images alone, with the hyperparameters that the paper fixes.

Suspicion = d(x, y) + BETA s_n + GAMMA s_m. s_n is the mean distance of the label to the labels of the K nearest images,
s_m the mean distance of the image to the K images with the nearest labels; both are damped by the neighbour's distance
and by the neighbour's own d. The paper takes d(x, y) from CLIP. Without a text encoder, a label is the mean direction of
its photos, the photo itself left out; labels are at distance 0 or 1, so the nearest labels are the label's own photos, of
which the K nearest count. The paper cuts by a labelled validation set; here the cut is Otsu's between two groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opponents.evidence import Evidence, Opinion, nearest

K, BETA, GAMMA, TAU_1, TAU_2 = 30, 5.0, 5.0, 0.1, 5.0


def lemon(evidence: Evidence) -> Opinion:
    """Opinion by the distances to neighbours among images and labels."""
    unit, labels = evidence.unit, evidence.labels
    own = label_distance(unit, labels, num_classes=evidence.num_classes)
    near, cosine = nearest(unit, K)
    damped = np.exp(-TAU_1 * (1 - cosine) - TAU_2 * own[near])
    s_n = ((labels[near] != labels[:, None]) * damped).mean(1)
    score = own + BETA * s_n + GAMMA * same_label(unit, labels, own)
    return Opinion(score > otsu(score), score)


def label_distance(unit: NDArray[np.float32], labels: NDArray[np.int64], *, num_classes: int) -> NDArray[np.float64]:
    """(N,) 1 - cosine of a photo to the mean of the other photos with its label; 1 without others."""
    total = np.zeros((num_classes, unit.shape[1]))
    np.add.at(total, labels, unit)
    others = total[labels] - unit
    length = np.linalg.norm(others, axis=1)
    return np.where(length > 1e-9, 1 - (others * unit).sum(1) / np.maximum(length, 1e-9), 1.0)


def same_label(unit: NDArray[np.float32], labels: NDArray[np.int64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) s_m: mean damped distance to the K nearest photos with the same label; 0 without others."""
    found = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            near, cosine = nearest(unit[rows], K)
            found[rows] = ((1 - cosine) * np.exp(-TAU_2 * own[rows][near])).mean(1)
    return found


def otsu(score: NDArray[np.floating]) -> float:
    """Cut with the least variance within the two groups that it makes (Otsu 1979)."""
    value = np.sort(score.astype(np.float64))
    below = np.arange(1, len(value))
    first = np.cumsum(value)[:-1]
    gap = first / below - (value.sum() - first) / (len(value) - below)
    cut = int((below * (len(value) - below) * gap**2).argmax())
    return float(value[cut] + value[cut + 1]) / 2
