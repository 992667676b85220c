"""Changes between two data versions, from their label tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataDiff:
    """Numbers of photos that differ, in total and per class.

    `added` photos are new; `dropped` ones are no longer kept; `restored` ones are kept again; `relabelled` ones are
    kept in both versions under different labels. A dropped photo counts for its old class, any other for its new class.
    """

    added: int
    dropped: int
    restored: int
    relabelled: int
    per_class: dict[str, dict[str, int]]


def compare_labels(old: Path, new: Path) -> DataDiff:
    """Compares the labels.parquet of two versions."""
    before, after = _Labels.read(old), _Labels.read(new)
    both, at_old, at_new = np.intersect1d(before.id, after.id, assume_unique=True, return_indices=True)
    was_kept, is_kept = before.kept[at_old], after.kept[at_new]
    added = ~np.isin(after.id, both, assume_unique=True)
    removed = ~np.isin(before.id, both, assume_unique=True) & before.kept
    relabelled = was_kept & is_kept & (before.label[at_old] != after.label[at_new])
    labels = {
        "added": after.label[added],
        "dropped": np.concatenate([before.label[at_old][was_kept & ~is_kept], before.label[removed]]),
        "restored": after.label[at_new][~was_kept & is_kept],
        "relabelled": after.label[at_new][relabelled],
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
