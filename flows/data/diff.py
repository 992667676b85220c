"""Changes between two data versions, from their label tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flows.data.columns import to_numpy
from models.data.manifest import OUTCOMES, outcomes, read_table_file

CHANGES = ("added", "dropped", "restored", "relabelled", "decided")
ABSENT = "absent"  # outcome of a photo in a version that does not hold it
STATES = (*OUTCOMES, ABSENT)


@dataclass(frozen=True)
class Kind:
    """Labels and outcomes before and after of photos that changed in the same way, and their number.

    change: one of CHANGES. An absent photo has no label.
    """

    change: str
    from_label: str
    from_outcome: str
    to_label: str
    to_outcome: str
    photos: int


@dataclass(frozen=True)
class Change(Kind):
    """Photos that changed in the same way, with their ids."""

    ids: list[str]


@dataclass(frozen=True)
class DataDiff:
    """Numbers of photos that differ, in total and per class, and the changes, the most frequent one first.

    Each photo of either version counts once. `added` photos are new; `dropped` ones are no longer kept; `restored` ones
    are kept again; `relabelled` ones are kept in both versions under different labels; the outcome of `decided` ones
    changed otherwise, such as doubted; the others are `unchanged`. A dropped photo counts for its old class, any other
    for its new class; a photo that has no label in either version counts for none.
    """

    added: int
    dropped: int
    restored: int
    relabelled: int
    decided: int
    unchanged: int
    per_class: dict[str, dict[str, int]]
    changes: list[Change]


def compare_labels(old: Path, new: Path) -> DataDiff:
    """Compares the labels.parquet of two versions."""
    before, after = (_Labels.read(path) for path in (old, new))
    ids = _union(before.id, after.id)
    names, labels = _encoded(before.label, after.label)
    (label_a, state_a), (label_b, state_b) = (
        side.at(ids, codes) for side, codes in zip((before, after), labels, strict=True)
    )
    kind = _kinds(label_a, state_a, label_b, state_b)
    rows = np.flatnonzero(kind >= 0)
    texts = [np.array(part, object) for part in (CHANGES, names, STATES, names, STATES)]
    shape = [len(part) for part in texts]
    key = np.ravel_multi_index([column[rows] for column in (kind, label_a, state_a, label_b, state_b)], shape)
    groups, group, counts = np.unique(key, return_inverse=True, return_counts=True)
    members = np.split(ids[rows[np.argsort(group, kind="stable")]], np.cumsum(counts)[:-1])
    columns = zip(texts, np.unravel_index(groups, shape), strict=True)
    described = zip(*(part[column].tolist() for part, column in columns), counts.tolist(), members, strict=False)
    changes = [Change(a, b, c, d, e, number, _texts(photos)) for a, b, c, d, e, number, photos in described]
    changes.sort(key=lambda each: (-each.photos, each.change, each.from_label, each.to_label))
    totals = Counter({name: 0 for name in CHANGES})
    for each in changes:
        totals[each.change] += each.photos
    return DataDiff(**totals, unchanged=len(ids) - len(rows), per_class=_per_class(changes), changes=changes)


def as_table(diff: DataDiff) -> pa.Table:
    """The changed photos, a row for each: id, and labels and outcomes before and after."""
    names = ("change", "from_label", "from_outcome", "to_label", "to_outcome")
    counts = [each.photos for each in diff.changes]
    number = np.repeat(np.arange(len(counts)), counts)
    columns = {
        name: pa.array([getattr(each, name) for each in diff.changes], pa.string()).take(pa.array(number))
        for name in names
    }
    return pa.table({"id": pa.array([photo for each in diff.changes for photo in each.ids], pa.string()), **columns})


def _kinds(
    label_a: NDArray[np.int64], state_a: NDArray[np.int64], label_b: NDArray[np.int64], state_b: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) position in CHANGES of each photo; -1 if label and outcome are the same."""
    absent, first_left_out = STATES.index(ABSENT), OUTCOMES.index("dropped")
    kept_a, kept_b = state_a < first_left_out, state_b < first_left_out
    cases = {
        "unchanged": (label_a == label_b) & (state_a == state_b),
        "added": state_a == absent,
        "dropped": kept_a & ~kept_b,
        "restored": ~kept_a & kept_b,
        "relabelled": kept_a & kept_b & (label_a != label_b),
    }
    values = [-1 if name == "unchanged" else CHANGES.index(name) for name in cases]
    return np.select(list(cases.values()), values, CHANGES.index("decided"))


def _per_class(changes: list[Change]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for each in changes:
        label = each.from_label if each.change == "dropped" or not each.to_label else each.to_label
        found.setdefault(label, Counter())[each.change] += each.photos
    return {label: {change: found[label][change] for change in CHANGES} for label in sorted(found) if label}


def _union(some: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Sorted ids of both, which are sorted."""
    places = np.searchsorted(some, others)
    is_new = np.append(some, b"")[places] != others
    return np.insert(some, places[is_new], others[is_new])


def _texts(ids: NDArray[np.bytes_]) -> list[str]:
    return ids.astype(str).tolist()


def _encoded(*labels: pa.ChunkedArray) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Names, of which the first is "", and for each of the columns the positions of its labels among them."""
    texts = pa.chunked_array([[""], *(chunk for column in labels for chunk in column.chunks)], pa.string())
    whole = texts.combine_chunks().dictionary_encode()
    codes = whole.indices.to_numpy().astype(np.int64)[1:]
    return whole.dictionary.to_pylist(), np.split(codes, np.cumsum([len(column) for column in labels])[:-1])


@dataclass(frozen=True)
class _Labels:
    id: NDArray[np.bytes_]
    label: pa.ChunkedArray
    outcome: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> _Labels:
        table = read_table_file(path, name="labels")
        return cls(to_numpy(table["id"], 16), table["label"], outcomes(table))

    def at(self, ids: NDArray[np.bytes_], codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Code of the label, and position in STATES, of each photo in `ids`, which are sorted and hold all of ours."""
        label, state = np.zeros(len(ids), np.int64), np.full(len(ids), STATES.index(ABSENT))
        rows = np.searchsorted(ids, self.id)
        label[rows], state[rows] = codes, self.outcome
        return label, state
