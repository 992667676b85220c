"""What photos that look alike say of a label: its nearest neighbours, and a linear classifier that never saw the photo.

Both leave the photo's own label out exactly, and both compare photos of one group only: embeddings of different networks lie in
different spaces. Nothing of N x N or N x C is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.errors import CleaningError

BLOCK_BYTES = 1 << 26  # of similarities, and of classifier rows, at a time


def directions(embeddings: NDArray[np.floating], groups: NDArray[np.integer]) -> NDArray[np.float32]:
    """(N, d) unit vectors from the mean of their group: what all photos share says nothing of any.

    Raises:
        CleaningError: NaN or infinity.
    """
    made = np.array(embeddings, np.float32)
    for rows in members(groups):
        made[rows] -= made[rows].mean(axis=0)
    length = np.sqrt(np.einsum("nd,nd->n", made, made))
    if not np.isfinite(length).all():
        wrong = ~np.isfinite(length)
        raise CleaningError(f"embeddings: NaN or infinity, in row {int(wrong.argmax())} at least; drop such rows")
    made /= np.maximum(length, 1e-12)[:, None]
    return made


def members(groups: NDArray[np.integer]) -> Iterator[NDArray[np.int64] | slice]:
    """Positions of each group's photos; a slice of all where there is one group."""
    names = np.unique(groups)
    if len(names) <= 1:
        yield slice(None)
        return
    for name in names:
        yield np.flatnonzero(groups == name)


def similar(unit: NDArray[np.float32], *, rows_at_once: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cosine similarities (n, N) of n photos to all, block by block, with the first photo's position.

    A photo's similarity to itself is -inf. The block is a buffer that the next one overwrites.
    """
    height = rows_at_once or max(1, BLOCK_BYTES // (4 * max(1, len(unit))))
    buffer = np.empty((min(height, len(unit)), len(unit)), np.float32)
    for start in range(0, len(unit), height):
        part = unit[start : start + height]
        cosine = np.matmul(part, unit.T, out=buffer[: len(part)])
        cosine[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        yield start, cosine


def neighbour_labels(
    unit: NDArray[np.float32], labels: NDArray[np.int64], *, neighbours: int, groups: NDArray[np.integer]
) -> NDArray[np.int32]:
    """(N, neighbours) labels of each photo's most similar others in its group; -1 where a group has no more.

    Exact, in O(N^2 d): 5,000 photos take a second, 50,000 about two minutes. Photos without a label cast no vote.
    """
    found = np.full((len(unit), neighbours), -1, np.int32)
    for rows in members(groups):
        voters = np.flatnonzero(labels[rows] >= 0)
        own, said = unit[rows], labels[rows]
        result = np.full((len(own), neighbours), -1, np.int32)
        k = min(neighbours, len(voters) - 1)
        if k < 1:
            continue
        for start, cosine in similar(own):
            cosine[:, said < 0] = -np.inf
            near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            result[start : start + len(near), :k] = said[near]
        found[rows] = result
    return found


def count_votes(neighbour: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """(N, K) how many of the neighbours (N, k) bear each candidate class (N, K); 0 where that is -1."""
    votes = np.zeros(ids.shape, np.float32)
    for column in neighbour.T:
        votes += ids == column[:, None]
    votes[ids < 0] = 0
    return votes


def linear_vote(
    unit: NDArray[np.float32],
    labels: NDArray[np.int64],
    ids: NDArray[np.int32],
    *,
    groups: NDArray[np.integer],
    ridge: float = 0.5,
    num_classes: int,
) -> NDArray[np.float32]:
    """(N, K) what a linear classifier, fitted to all labels but the photo's own, answers for each candidate class (N, K).

    Ridge regression to the one-hot labels, about 1 for a class and 0 for another. The answer without the photo's own label
    is exact and needs no second fit: (f - h y) / (1 - h), with h the photo's leverage (Allen's PRESS, 1974). One pass sums
    d x d products and C x d class sums, another asks; so time is O(N d^2 + N K d), memory O(d^2 + C d).

    Args:
        unit: (N, d), as `directions` gives them.
        labels: (N,) classes; photos of -1 are not fitted to.
        ids: (N, K) candidate classes; column 0 is the label; -1 gives 0.
        groups: (N,) each is fitted alone.
        ridge: > 0, in mean eigenvalues of the photos' second moments.
        num_classes: C.
    """
    answers = np.zeros(ids.shape, np.float32)
    for rows in members(groups):
        answers[rows] = _linear_vote(unit[rows], labels[rows], ids[rows], ridge=ridge, num_classes=num_classes)
    return answers


def _linear_vote(
    unit: NDArray[np.float32], labels: NDArray[np.int64], ids: NDArray[np.int32], *, ridge: float, num_classes: int
) -> NDArray[np.float32]:
    fitted = labels >= 0
    width = unit.shape[1] + 1
    moments = np.zeros((width, width))
    sums = np.zeros((num_classes, width), np.float32)
    height = max(1, BLOCK_BYTES // (4 * ids.shape[1] * width))
    for start in range(0, len(unit), height):
        rows = slice(start, start + height)
        x = _with_constant(unit[rows][fitted[rows]])
        moments += x.T @ x
        np.add.at(sums, labels[rows][fitted[rows]], x)
    moments[np.diag_indices(width)] += ridge * max(1, fitted.sum()) / width
    inverse = np.linalg.inv(moments).astype(np.float32)
    classifier = sums @ inverse
    answers = np.empty(ids.shape, np.float32)
    for start in range(0, len(unit), height):
        rows = slice(start, start + height)
        x = _with_constant(unit[rows])
        leverage = np.where(fitted[rows], np.einsum("nd,nd->n", x @ inverse, x), 0)
        value = np.einsum("nkd,nd->nk", classifier[ids[rows]], x)
        value[:, 0] -= leverage  # column 0 is the label that the photo was fitted to
        answers[rows] = np.where(ids[rows] >= 0, value / np.maximum(1 - leverage, 1e-6)[:, None], 0)
    return answers


def _with_constant(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
