"""Votes of similar photos about a label: nearest neighbours, and a linear classifier that was not fitted to the photo.

Both leave out the photo's own label exactly. Both compare photos of one group only, because embeddings of different
networks lie in different spaces. No array of N x N or N x C is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.cleaning.joined import Table
from models.errors import CleaningError

BLOCK_BYTES = 1 << 26  # bytes of similarities, or of classifier rows, in one block
BLOCK_ROWS = 1 << 14
MOST_VOTERS = 500  # photos of a class with which a photo is compared
OTHERS = 2000  # photos that stand for the classes other than the candidates


def directions(embeddings: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, d) unit vectors from the mean (d,) of all photos, which carries no information about a single one."""
    centred = np.asarray(embeddings - mean, np.float32)
    centred /= np.maximum(np.sqrt(np.einsum("ij,ij->i", centred, centred)), 1e-12)[:, None]
    return centred


def members(groups: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """Positions of the photos of each group."""
    for name in np.unique(groups):
        yield np.flatnonzero(groups == name)


def centre(embeddings: Table, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(d,) mean embedding of some photos, summed in blocks.

    Raises:
        CleaningError: NaN or infinity.
    """
    total = np.zeros(embeddings.shape[1])
    for part in in_parts(rows, BLOCK_ROWS):
        values = embeddings[part]
        if not np.isfinite(values).all():
            wrong = ~np.isfinite(values).all(axis=1)
            raise CleaningError(f"embeddings: NaN or infinity, first in row {part[wrong.argmax()]}; drop these photos")
        total += values.sum(axis=0, dtype=np.float64)
    return np.asarray(total / max(1, len(rows)), np.float32)


def similar(unit: NDArray[np.float32], *, rows_at_once: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of cosine similarities (n, N) of n photos to all, each with the position of its first photo.

    The similarity of a photo to itself is -inf. A block is a buffer that the next one overwrites.
    """
    height = rows_at_once or max(1, BLOCK_BYTES // (4 * max(1, len(unit))))
    buffer = np.empty((min(height, len(unit)), len(unit)), np.float32)
    for start in range(0, len(unit), height):
        part = unit[start : start + height]
        cosine = np.matmul(part, unit.T, out=buffer[: len(part)])
        cosine[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        yield start, cosine


def neighbour_labels(
    embeddings: Table, labels: NDArray[np.int64], *, neighbours: int, groups: NDArray[np.integer]
) -> NDArray[np.int32]:
    """(N, neighbours) labels of the most similar other photos in the group; -1 if the group is too small.

    Photos without a label (-1) have no vote. Exact, in O(N^2 d) time and blocks of 64 MB.
    """
    found = np.full((len(embeddings), neighbours), -1, np.int32)
    for rows in members(groups):
        group_labels = labels[rows]
        k = min(neighbours, int((group_labels >= 0).sum()) - 1)
        if k < 1:
            continue
        for start, cosine in similar(directions(embeddings[rows], centre(embeddings, rows))):
            cosine[:, group_labels < 0] = -np.inf
            near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            found[rows[start : start + len(near)], :k] = group_labels[near]
    return found


def count_votes(neighbour: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """(N, K) number of neighbours (N, k) whose label is each candidate class (N, K); 0 for the candidate -1."""
    votes = np.zeros(ids.shape, np.float32)
    for column in neighbour.T:
        votes += ids == column[:, None]
    votes[ids < 0] = 0
    return votes


def candidate_votes(
    embeddings: Table,
    labels: NDArray[np.int64],
    ids: NDArray[np.int32],
    *,
    neighbours: int,
    groups: NDArray[np.integer],
    most: int = MOST_VOTERS,
    others: int = OTHERS,
) -> NDArray[np.float32]:
    """(N, K) number of the most similar other photos of the group whose label is each candidate class; 0 for -1.

    A photo is compared only with the photos of its candidate classes (N, K), at most `most` of each, and with `others`
    photos that stand for all other classes; all are drawn once. Without these, unlike photos of candidates would become
    neighbours wherever classes are small. Time is O(N (K most + others) d) at most, and less where classes are smaller;
    memory is O(N neighbours).
    """
    votes = np.zeros(ids.shape, np.float32)
    for rows in members(groups):
        near = _Nearest(embeddings, rows, neighbours)
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(labels[rows] >= 0))
        asked, voting = _by_class(ids[rows].ravel()), _by_class(labels[rows[drawn]])
        for name in sorted(asked.keys() & voting.keys()):
            near.compare(np.sort(drawn[voting[name][:most]]), *np.divmod(asked[name], ids.shape[1]))
        if others and len(drawn):
            voters = np.sort(drawn[:others])
            near.compare_others(voters, labels[rows[voters]], ids[rows])
        for column in near.column.T:
            voted = np.flatnonzero(column >= 0)
            votes[rows[voted], column[voted]] += 1
    return votes


class _Nearest:
    """The most similar other photos found so far for each of the n photos of a group.

    The length of a photo's own vector is left out of its similarities: it does not change their order.

    Attributes:
        best: (n, neighbours) their similarities; -inf where there are too few.
        column: (n, neighbours) int8 column of the candidate that they vote for; -1 for none.
    """

    def __init__(self, embeddings: Table, rows: NDArray[np.int64], neighbours: int) -> None:
        self.embeddings, self.rows, self.mean = embeddings, rows, centre(embeddings, rows)
        self.best = np.full((len(rows), neighbours), -np.inf, np.float32)
        self.column = np.full((len(rows), neighbours), -1, np.int8)

    def compare(self, voters: NDArray[np.int64], asking: NDArray[np.int64], column: NDArray[np.int64]) -> None:
        """Compares photos with the voters of one class, which is the candidate in that column (m,) of each."""
        for part, near in self._similarities(voters, asking):
            self._add(asking[part], near, column[part].astype(np.int8))

    def compare_others(self, voters: NDArray[np.int64], labels: NDArray[np.int64], ids: NDArray[np.int32]) -> None:
        """Compares all photos with voters of these labels, except of their own candidates (n, K), which `compare` covers."""
        order = np.argsort(labels, kind="stable")
        names, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
        for part, near in self._similarities(voters, np.arange(len(self.rows))):
            place = np.minimum(np.searchsorted(names, ids[part]), len(names) - 1)
            row, column = np.nonzero(names[place] == ids[part])
            first, count = starts[place[row, column]], sizes[place[row, column]]
            each = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
            near[np.repeat(row, count), order[each]] = -np.inf
            self._add(part, near, np.full(len(part), -1, np.int8))

    def _similarities(
        self, voters: NDArray[np.int64], asking: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Blocks of positions in `asking`, and their similarities (m, voters); -inf for the photo itself."""
        unit = directions(self.embeddings[self.rows[voters]], self.mean)
        shift = unit @ self.mean
        for part in in_parts(np.arange(len(asking)), BLOCK_BYTES // (20 * (len(voters) + unit.shape[1]))):
            near = np.asarray(self.embeddings[self.rows[asking[part]]], np.float32) @ unit.T - shift
            at = np.minimum(np.searchsorted(voters, asking[part]), len(voters) - 1)
            itself = np.flatnonzero(voters[at] == asking[part])
            near[itself, at[itself]] = -np.inf
            yield part, near

    def _add(self, asking: NDArray[np.int64], near: NDArray[np.float32], column: NDArray[np.int8]) -> None:
        both = np.concatenate([self.best[asking], near], axis=1)
        neighbours = self.best.shape[1]
        kept = np.argpartition(-both, neighbours - 1, axis=1)[:, :neighbours]
        is_new = kept >= neighbours
        former = np.take_along_axis(self.column[asking], np.where(is_new, 0, kept), 1)
        self.best[asking] = found = np.take_along_axis(both, kept, 1)
        self.column[asking] = np.where(found == -np.inf, -1, np.where(is_new, column[:, None], former))


def _by_class(classes: NDArray[np.integer]) -> dict[int, NDArray[np.int64]]:
    """Positions of each class of (n,), in ascending order; those of -1 are left out."""
    order = np.argsort(classes, kind="stable")
    order = order[np.searchsorted(classes[order], 0) :]
    names, starts = np.unique(classes[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def linear_vote(
    embeddings: Table,
    labels: NDArray[np.int64],
    ids: NDArray[np.int32],
    *,
    groups: NDArray[np.integer],
    num_classes: int,
    ridge: float = 0.5,
) -> NDArray[np.float32]:
    """(N, K) output, for each candidate class, of a linear classifier fitted to all labels except the photo's own.

    Ridge regression to the one-hot labels: about 1 for the class of the photo and 0 for others. Leaving out the photo's
    own label is exact and needs no second fit: (f - h y) / (1 - h), with h the leverage of the photo (PRESS, Allen
    1974). One pass sums d x d products and C x d class sums, a second one predicts: time O(N d^2 + N K d), memory O(d^2
    + C d).

    Args:
        embeddings: (N, d).
        labels: (N,) classes; photos with -1 are left out of the fit.
        ids: (N, K) candidate classes, the label in column 0; the output for -1 is 0.
        groups: (N,) group of each photo; every group has its own fit.
        num_classes: C.
        ridge: > 0, in units of the mean eigenvalue of the second moments.
    """
    answers = np.zeros(ids.shape, np.float32)
    for rows in members(groups):
        mean = centre(embeddings, rows)
        inverse, classifier = _fit(embeddings, labels, rows, mean, ridge=ridge, num_classes=num_classes)
        for part in in_parts(rows, BLOCK_BYTES // (4 * ids.shape[1] * len(inverse))):
            x = _with_constant(directions(embeddings[part], mean))
            leverage = np.where(labels[part] >= 0, np.einsum("ij,ij->i", x @ inverse, x), 0).astype(np.float32)
            answer = np.einsum("ikj,ij->ik", classifier[ids[part]], x)
            answer[:, 0] -= leverage  # column 0 is the label, to which the photo was fitted
            answer /= np.maximum(1 - leverage, np.float32(1e-6))[:, None]
            answers[part] = np.where(ids[part] >= 0, answer, 0)
    return answers


def _fit(
    embeddings: Table,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    mean: NDArray[np.float32],
    *,
    ridge: float,
    num_classes: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inverse of the second moments, (d + 1, d + 1), and the classifier, (C, d + 1), of a group."""
    width = embeddings.shape[1] + 1
    moments, sums = np.zeros((width, width)), np.zeros((num_classes, width), np.float32)
    fitted = rows[labels[rows] >= 0]
    for part in in_parts(fitted, BLOCK_ROWS):
        part = part[np.argsort(labels[part], kind="stable")]
        x = _with_constant(directions(embeddings[part], mean))
        moments += x.T @ x
        classes, starts = np.unique(labels[part], return_index=True)
        sums[classes] += np.add.reduceat(x, starts, axis=0)
    moments[np.diag_indices(width)] += ridge * max(1, len(fitted)) / width
    inverse = np.linalg.inv(moments).astype(np.float32)
    return inverse, sums @ inverse


def in_parts(rows: NDArray[np.int64], height: int) -> Iterator[NDArray[np.int64]]:
    """Yields `height` rows at a time, at least one."""
    for start in range(0, len(rows), max(1, height)):
        yield rows[start : start + max(1, height)]


def _with_constant(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
