"""Checks of labels, probabilities and embeddings; every refusal names the argument, the rows and what to do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cleaning.joined import Table
from models.errors import CleaningError

log = logging.getLogger(__name__)
SUM_TOLERANCE = 1e-2  # enough for a sum over 50,030 classes in half precision
CERTAIN = 0.99


@dataclass(frozen=True)
class TopK:
    """Probabilities without the N x C table: those of the k best classes of each photo, and of its label.

    Attributes:
        ids: (N, k) classes, each at most once in a row, in any order.
        probs: (N, k) their probabilities, in [0, 1], with a sum of 1 at most.
        p_label: (N,) probability of the label, in [0, 1], even if it is not among the k.
        num_classes: C; None: the largest class that occurs, plus one.
    """

    ids: NDArray[np.integer]
    probs: NDArray[np.floating]
    p_label: NDArray[np.floating]
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.p_label)


def check_form(labels: NDArray[np.integer], pred_probs: NDArray[np.floating] | TopK) -> int:
    """C; raises CleaningError unless labels and probabilities are arrays of the right type and shape."""
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.size == 0):
        raise CleaningError(
            f"labels: {labels.dtype} of shape {labels.shape}, expected (N,) integers; give classes, counted from 0"
        )
    sparse = isinstance(pred_probs, TopK)
    table = pred_probs.probs if isinstance(pred_probs, TopK) else pred_probs
    name = "pred_probs.probs" if sparse else "pred_probs"
    if table.ndim != 2 or table.shape[1] == 0 or not np.issubdtype(table.dtype, np.floating):
        raise CleaningError(
            f"{name}: {table.dtype} of shape {table.shape}, expected (N, {'k' if sparse else 'C'}) floats"
        )
    if len(table) != len(labels):
        raise CleaningError(f"{name}: {len(table)} rows for {len(labels)} labels; give one row for each photo")
    if not isinstance(pred_probs, TopK):
        return int(table.shape[1])
    if pred_probs.ids.shape != table.shape or pred_probs.p_label.shape != labels.shape:
        raise CleaningError(f"pred_probs: ids {pred_probs.ids.shape}, probs {table.shape} and p_label "
                            f"{pred_probs.p_label.shape} do not fit; expected (N, k), (N, k), (N,)")  # fmt: skip
    return pred_probs.num_classes or 1 + int(max(labels.max(initial=0), pred_probs.ids.max(initial=0)))


def check_labels(labels: NDArray[np.integer], num_classes: int) -> None:
    """Refuses labels that are neither a class nor -1."""
    wrong = (labels < -1) | (labels >= num_classes)
    refuse(wrong, f"labels: outside [-1, {num_classes})", "correct the labels, or give num_classes")


def check_photos(num: int, encoders: Sequence[Table], groups: NDArray[np.integer] | None) -> None:
    """Refuses embeddings or groups whose shape does not fit the number of labels."""
    for embeddings in encoders:
        if embeddings.ndim != 2 or len(embeddings) != num:
            raise CleaningError(
                f"embeddings: shape {embeddings.shape} for {num} labels; give (N, d), one row for each photo"
            )
    if groups is not None and np.shape(groups) != (num,):
        raise CleaningError(f"groups: shape {np.shape(groups)} for {num} labels; give (N,), one number for each photo")


def check_names(names: Sequence[str] | None, num_classes: int) -> None:
    """Refuses names that are not one text for each class."""
    if names is None:
        return
    if isinstance(names, str) or len(names) != num_classes:
        raise CleaningError(f"names: {len(names)} for {num_classes} classes; give a list with one name for each class")
    wrong = np.array([not isinstance(name, str) for name in names], np.bool_)
    refuse(wrong, "names: not a text", "give the name of each class as str")


def check_vectors(
    name_vectors: Sequence[NDArray[np.floating] | None], encoders: Sequence[Table], num_classes: int
) -> None:
    """Refuses vectors of names that do not fit the classes and the embeddings, or hold NaN or infinity."""
    if len(name_vectors) != len(encoders):
        raise CleaningError(
            f"name_vectors: {len(name_vectors)} for {len(encoders)} encoders; give one for each, or None for an encoder that "
            "knows no names"
        )
    for vectors, embeddings in zip(name_vectors, encoders, strict=True):
        if vectors is None:
            continue
        if vectors.shape != (num_classes, embeddings.shape[1]):
            raise CleaningError(
                f"name_vectors: shape {vectors.shape} for {num_classes} classes and embeddings of {embeddings.shape[1]} numbers; "
                "give (C, d), made by the text tower that belongs to the encoder"
            )
        wrong = ~np.isfinite(vectors).all(axis=1)
        refuse(wrong, "name_vectors: NaN or infinity", "make them again, or give zeros for a name without a vector")


def check_sparse(pred_probs: TopK, num_classes: int) -> None:
    """Refuses classes out of range and values that are not probabilities."""
    wrong = np.asarray(((pred_probs.ids < 0) | (pred_probs.ids >= num_classes)).any(axis=1))
    refuse(wrong, f"pred_probs.ids: outside [0, {num_classes})", "correct them, or give num_classes")
    total = pred_probs.probs.sum(axis=1, dtype=np.float32)
    fine = np.asarray((pred_probs.probs.min(axis=1) >= 0) & (total <= 1 + SUM_TOLERANCE))
    refuse(~fine, "pred_probs.probs: NaN, negative or with a sum above 1", "give probabilities, not logits")
    fine = np.asarray((pred_probs.p_label >= 0) & (pred_probs.p_label <= 1 + SUM_TOLERANCE))
    refuse(~fine, "pred_probs.p_label: NaN or outside [0, 1]", "give the probability of the label")


def check_dense(block: NDArray[np.floating], start: int) -> None:
    """Refuses rows that are not probabilities; `start` is the position of the first row in the whole table."""
    total = block @ np.ones(block.shape[1], block.dtype)  # NaN if any value is NaN
    fine = np.abs(total - 1) <= SUM_TOLERANCE
    if not fine.all() or block.min(initial=0) < 0:
        wrong = ~fine | (block < 0).any(axis=1)
        row = int(np.flatnonzero(wrong)[0])
        raise CleaningError(
            f"pred_probs: row {start + row} sums to {total[row]:g} and its least value is {block[row].min():g}; "
            "give probabilities that sum to 1: apply softmax to logits, and drop rows with NaN"
        )


def refuse(wrong: NDArray[np.bool_], problem: str, remedy: str) -> None:
    """Raises CleaningError if any row is wrong, with the number of such rows and the first of them."""
    if wrong.any():
        raise CleaningError(f"{problem} in {int(wrong.sum())} rows, first in row {int(wrong.argmax())}; {remedy}")


def warn(
    labels: NDArray[np.int64], p_label: NDArray[np.float32], p_other: NDArray[np.float32], *, num_classes: int
) -> None:
    """Logs a warning about input that is legal but probably a mistake: in-sample probabilities, or permuted columns."""
    labelled = labels >= 0
    if labelled.sum() < 100 or num_classes < 2:
        return
    certain = float((p_label[labelled] > CERTAIN).mean())
    if certain > 0.95:
        log.warning("pred_probs: %.1f%% of the labels have a probability above %g, as in sample, where wrong labels "
                    "look right; use networks that were not trained on the photos", 100 * certain, CERTAIN)  # fmt: skip
    agreeing = float((p_label >= p_other)[labelled].mean())
    if agreeing < 1.5 / num_classes:
        log.warning("pred_probs: only %.1f%% of the labels are the most probable class, as by chance; compare the "
                    "order of the classes with that of the columns", 100 * agreeing)  # fmt: skip
