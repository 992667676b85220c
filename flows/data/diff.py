"""What changed between two data versions, from their labels tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataDiff:
    """Numbers of photos that differ, in all and per class.

    `added` were not there before; `dropped` were kept and are not; `restored` the reverse; `relabelled` are kept in
    both under another label. A dropped photo counts for its old class, every other for its new one.
    """

    added: int
    dropped: int
    restored: int
    relabelled: int
    per_class: dict[str, dict[str, int]]


def compare_labels(old: Path, new: Path) -> DataDiff:
    """Compare two files of the labels.parquet kind."""
    before, after = _Labels.read(old), _Labels.read(new)
    both, at_old, at_new = np.intersect1d(before.id, after.id, assume_unique=True, return_indices=True)
    was, now = before.kept[at_old], after.kept[at_new]
    fresh = ~np.isin(after.id, both, assume_unique=True)
    gone = ~np.isin(before.id, both, assume_unique=True) & before.kept
    moved = was & now & (before.label[at_old] != after.label[at_new])
    labels = {
        "added": after.label[fresh],
        "dropped": np.concatenate([before.label[at_old][was & ~now], before.label[gone]]),
        "restored": after.label[at_new][~was & now],
        "relabelled": after.label[at_new][moved],
    }
    counts = {change: Counter(found.tolist()) for change, found in labels.items()}
    classes = sorted(set().union(*counts.values()))
    per_class = {label: {change: count[label] for change, count in counts.items()} for label in classes}
    return DataDiff(**{change: len(found) for change, found in labels.items()}, per_class=per_class)


@dataclass(frozen=True)
class _Labels:
    id: NDArray[np.str_]
    label: NDArray[np.object_]
    kept: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path) -> _Labels:
        table = pq.read_table(path, columns=["id", "label", "kept"])
        ids = table["id"].to_numpy().astype(np.str_)
        return cls(id=ids, label=table["label"].to_numpy(), kept=table["kept"].to_numpy())
