"""Input of the rules: labels with dense or sparse probabilities, checked and read in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.cleaning.inputs import (
    TopK,
    check_dense,
    check_form,
    check_labels,
    check_names,
    check_photos,
    check_sparse,
    check_vectors,
    warn,
)
from models.cleaning.joined import JoinedRows, Table

KEEP = 5  # most probable other classes of a photo that count as candidates; 10 found no more label issues
BLOCK_BYTES = 1 << 19  # bytes of the dense table that are processed at a time; they fit into the cache of a core

Embeddings = Table | Sequence[Table] | None
NameVectors = NDArray[np.floating] | Sequence[NDArray[np.floating] | None] | None


@dataclass(frozen=True)
class Candidates:
    """Candidate classes of each photo: the label in column 0, then the most probable others.

    Attributes:
        ids: (N, K + 1) int32 classes, -1 for none.
        p: (N, K + 1) float32 probabilities, 0 for no class.
    """

    ids: NDArray[np.int32]
    p: NDArray[np.float32]

    @property
    def exists(self) -> NDArray[np.bool_]:
        """(N, K + 1) True where there is a candidate."""
        return self.ids >= 0


@dataclass(frozen=True, kw_only=True)
class RuleInput:
    """Labels, probabilities and embeddings of photos; created by `gather`, which checks them.

    Attributes:
        labels: (N,) classes; -1 is never scored.
        num_classes: C.
        p_label: (N,) probability of the label; 0 for the label -1.
        other: (N,) the most probable class that is not the label; -1 for none.
        p_other: (N,) its probability.
        pred_probs: probabilities as given.
        embeddings: (N, d) of each encoder; empty if there are none.
        groups: (N,) group of each photo; embeddings of different groups, such as of different networks, are not
            compared.
        names: of the C classes; None: unknown.
        name_vectors: (C, d) vectors of the names in the space of each encoder, or None; as many as encoders.
    """

    labels: NDArray[np.int64]
    num_classes: int
    p_label: NDArray[np.float32]
    other: NDArray[np.int64]
    p_other: NDArray[np.float32]
    pred_probs: NDArray[np.floating] | TopK
    embeddings: tuple[Table, ...]
    groups: NDArray[np.integer]
    names: tuple[str, ...] | None = None
    name_vectors: tuple[NDArray[np.floating] | None, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> NDArray[np.bool_]:
        """(N,) True if the label is a class of the network."""
        return self.labels >= 0

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(C,) number of photos with each label."""
        return np.bincount(self.labels[self.is_labelled], minlength=self.num_classes)

    @property
    def named(self) -> list[tuple[Table, NDArray[np.floating]]]:
        """Embeddings of the encoders that know the names, and the vectors of these."""
        pairs = zip(self.embeddings, self.name_vectors, strict=True)
        return [(embeddings, vectors) for embeddings, vectors in pairs if vectors is not None]

    @property
    def present(self) -> int:
        """Number of classes that have photos."""
        return int(np.count_nonzero(self.counts))

    @cached_property
    def candidates(self) -> Candidates:
        """The label and the KEEP most probable other classes."""
        return self.best(KEEP)

    def best(self, count: int) -> Candidates:
        """The label and the `count` most probable other classes, from dense or sparse probabilities."""
        width = self.pred_probs.ids.shape[1] if isinstance(self.pred_probs, TopK) else self.num_classes
        others = min(count, width)
        ids = np.full((len(self), others + 1), -1, np.int32)
        p = np.zeros((len(self), others + 1), np.float32)
        ids[:, 0], p[:, 0] = self.labels, self.p_label
        for rows, classes, probs in self.others():
            best = np.argpartition(-probs, others - 1, axis=1)[:, :others]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(probs, best, 1), axis=1, kind="stable"), 1)
            p[rows, 1:] = np.maximum(np.take_along_axis(probs, best, 1), 0)
            found = best if classes is None else np.take_along_axis(classes, best, 1)
            ids[rows, 1:] = np.where(np.take_along_axis(probs, best, 1) < 0, -1, found)
        return Candidates(ids, p)

    def others(self) -> Iterator[tuple[slice, NDArray[np.integer] | None, NDArray[np.floating]]]:
        """Blocks of rows: classes (n, k), or None if column j is class j, and probabilities (n, k), -1 at the label."""
        yield from blocks(self.labels, self.pred_probs)


def as_encoders(embeddings: Embeddings) -> tuple[Table, ...]:
    """The embeddings of each encoder: of one array, of several, or of none."""
    if embeddings is None:
        return ()
    return (embeddings,) if isinstance(embeddings, np.ndarray | JoinedRows) else tuple(embeddings)


def of_encoders(name_vectors: NameVectors, num: int) -> tuple[NDArray[np.floating] | None, ...]:
    """Vectors of the names for each of the encoders; those of one array belong to the first."""
    if name_vectors is None:
        return (None,) * num
    return (name_vectors, *[None] * (num - 1)) if isinstance(name_vectors, np.ndarray) else tuple(name_vectors)


def gather(
    labels: NDArray[np.integer],
    pred_probs: NDArray[np.floating] | TopK,
    embeddings: Embeddings = None,
    *,
    groups: NDArray[np.integer] | None = None,
    names: Sequence[str] | None = None,
    name_vectors: NameVectors = None,
) -> RuleInput:
    """Checked input of the rules. Reads the probabilities once; needs O(N + C) memory beside them.

    Raises:
        CleaningError: wrong shapes, ranges or sums, or NaN; the message names the argument, the rows and the first row.
    """
    given, pred_probs = np.asarray(labels), pred_probs if isinstance(pred_probs, TopK) else np.asarray(pred_probs)
    num_classes = check_form(given, pred_probs)
    check_labels(given, num_classes)
    encoders = as_encoders(embeddings)
    check_photos(len(given), encoders, groups)
    check_names(names, num_classes)
    vectors = of_encoders(name_vectors, len(encoders))
    check_vectors(vectors, encoders, num_classes)
    target = given.astype(np.int64, copy=False)
    if isinstance(pred_probs, TopK):
        check_sparse(pred_probs, num_classes)
    p_label, p_other = np.zeros(len(target), np.float32), np.zeros(len(target), np.float32)
    other = np.full(len(target), -1, np.int64)
    if isinstance(pred_probs, TopK):
        p_label[:] = np.where(target >= 0, pred_probs.p_label, 0)
    else:
        known = np.flatnonzero(target >= 0)
        p_label[known] = pred_probs[known, target[known]]
    for rows, classes, probs in blocks(target, pred_probs, check=not isinstance(pred_probs, TopK)):
        best = probs.argmax(axis=1)
        value = probs[np.arange(len(best)), best]
        found = best if classes is None else classes[np.arange(len(best)), best]
        other[rows], p_other[rows] = np.where(value < 0, -1, found), np.maximum(value, 0)
    data = RuleInput(labels=target, num_classes=num_classes, p_label=p_label, other=other, p_other=p_other,
                     pred_probs=pred_probs, embeddings=encoders,
                     groups=np.zeros(len(target), np.int8) if groups is None else np.asarray(groups),
                     names=None if names is None else tuple(names), name_vectors=vectors)  # fmt: skip
    warn(target, p_label, p_other, num_classes=num_classes)
    return data


def blocks(
    labels: NDArray[np.int64], pred_probs: NDArray[np.floating] | TopK, *, check: bool = False
) -> Iterator[tuple[slice, NDArray[np.integer] | None, NDArray[np.floating]]]:
    """Blocks as `RuleInput.others` yields them; the probabilities are a buffer that the next block overwrites."""
    table = pred_probs.probs if isinstance(pred_probs, TopK) else pred_probs
    height = max(1, BLOCK_BYTES // max(1, table.shape[1] * table.itemsize))
    buffer = np.empty((height, table.shape[1]), table.dtype)
    for start in range(0, len(table), height):
        rows = slice(start, min(start + height, len(table)))
        source, target = table[rows], labels[rows]
        if check:
            check_dense(source, start)
        probs = buffer[: len(source)]
        np.copyto(probs, source)
        if isinstance(pred_probs, TopK):
            classes = pred_probs.ids[rows]
            probs[classes == target[:, None]] = -1
            yield rows, classes, probs
        else:
            known = np.flatnonzero(target >= 0)
            probs[known, target[known]] = -1
            yield rows, None, probs
