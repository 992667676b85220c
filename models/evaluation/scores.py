"""Scores of a network for a set of photos: the probability of the label and the ten best classes.

For 2.5 million photos and 50,030 classes, a dense table N x C would take 500 GB; this one takes 0.2 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

KEEP = 10


@dataclass(frozen=True)
class Scores:
    """Scores of N photos, with the best K = min(KEEP, C) classes of each.

    Attributes:
        id: (N,) ids of the photos.
        target: (N,) class of the label that the photo had when it was scored; -1 if the network does not know the
            label.
        p_label: (N,) float32 probability of that class, in [0, 1].
        top: (N, K) classes, most probable first.
        probs: (N, K) float32 probabilities of these classes, descending.
    """

    id: NDArray[np.str_]
    target: NDArray[np.int64]
    p_label: NDArray[np.float32]
    top: NDArray[np.int64]
    probs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.id)

    def select(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> Scores:
        """Scores of the photos given by a mask or by positions."""
        return Scores(self.id[mask], self.target[mask], self.p_label[mask], self.top[mask], self.probs[mask])

    @property
    def hit(self) -> NDArray[np.bool_]:
        """(N,) True if the best class is that of the label."""
        first: NDArray[np.bool_] = self.top[:, 0] == self.target
        return first

    def best_other(self) -> NDArray[np.float32]:
        """(N,) probability of the best class other than the label's."""
        other = np.where(self.top == self.target[:, None], np.float32(0), self.probs)
        best: NDArray[np.float32] = other.max(axis=1)
        return best


def write_scores(scores: Scores, path: Path) -> None:
    """Writes scores as a Parquet file, compressed by zstd."""
    k = scores.top.shape[1]
    table = pa.table(
        {
            "id": pa.array(scores.id, pa.string()),
            "target": scores.target.astype(np.int32),
            "p_label": scores.p_label,
            "top": pa.FixedSizeListArray.from_arrays(scores.top.astype(np.int32).ravel(), k),
            "probs": pa.FixedSizeListArray.from_arrays(scores.probs.ravel(), k),
        }
    )
    pq.write_table(table, path, compression="zstd")


def read_scores(path: Path) -> Scores:
    """Reads a file of `write_scores`."""
    table = pq.read_table(path)

    def matrix(name: str) -> NDArray[np.generic]:
        flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(-1, table.schema.field(name).type.list_size)

    return Scores(
        id=table["id"].to_numpy().astype(str),
        target=table["target"].to_numpy().astype(np.int64),
        p_label=table["p_label"].to_numpy(),
        top=matrix("top").astype(np.int64),
        probs=matrix("probs").astype(np.float32),
    )


def concatenate(parts: Sequence[Scores]) -> Scores:
    """All rows of several scores, sorted by id."""
    ids = np.concatenate([part.id for part in parts])
    order = np.argsort(ids)
    return Scores(
        ids[order],
        np.concatenate([part.target for part in parts])[order],
        np.concatenate([part.p_label for part in parts])[order],
        np.concatenate([part.top for part in parts])[order],
        np.concatenate([part.probs for part in parts])[order],
    )


def mean(members: Sequence[Scores], *, weights: Sequence[float] | None = None) -> Scores:
    """Scores of an ensemble: weighted mean of the members' kept probabilities, for the same photos in the same order.

    Only the ten best classes of each member enter the mean, as in the AliProducts report (arXiv 2106.10683, section
    2.4) and in the exported graph.

    Args:
        weights: weights of the members, with sum 1; None: equal weights.

    Raises:
        ValueError: the members scored different photos.
    """
    first = members[0]
    parts = np.array(weights or [1 / len(members)] * len(members), np.float32)
    if any(not np.array_equal(first.id, other.id) for other in members):
        raise ValueError("members scored different photos; score them on the same rows")
    classes = np.concatenate([member.top for member in members], axis=1)
    order = np.argsort(classes, axis=1, kind="stable")  # brings together the members' probabilities of a class
    classes = np.take_along_axis(classes, order, 1)
    probs = np.concatenate([part * member.probs for part, member in zip(parts, members, strict=True)], axis=1)
    starts = np.diff(classes, axis=1, prepend=-1) != 0
    total = np.full(classes.shape, -1, np.float32)  # below 0 wherever a class occurs again
    total[starts] = np.add.reduceat(np.take_along_axis(probs, order, 1).ravel(), np.flatnonzero(starts))
    best = np.argsort(-total, axis=1, kind="stable")[:, : first.top.shape[1]]
    p_label = parts @ np.stack([member.p_label for member in members])
    return Scores(
        first.id, first.target, p_label, np.take_along_axis(classes, best, 1), np.take_along_axis(total, best, 1)
    )
