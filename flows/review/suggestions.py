"""Suggested classes of each photo, from the cached results of the folds that scored it.

A fold names classes by their position in the classes of the version that it scored. A delivery with new products moves
these positions, so the label of each number is read off the data: it is the given label of most photos with that target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.review.photos import PERSON, Photos, numbers
from models.data.manifest import FLAGGED
from models.evaluation.scores import KEEP, Scores, mean

BLOCK = 50_000  # photos whose suggestions are averaged at once
RELABELLED = "relabelled"


@dataclass(frozen=True)
class Suggestions:
    """The best classes of N photos. C classes, K = 10; rows as in `Photos`.

    Attributes:
        top: (N, K) int32 codes of labels, most probable first; -1: none.
        probs: (N, K) float16 probabilities, 0 where there is none.
        asked: (N,) int32 code of the label in question: the given label of a photo that cleaning relabelled, else its label.
        suggested: (N,) int32 code of the class to take instead; -1 if the networks agree with the label, or were not asked.
        fold: (N,) int8 position in `folds` of a network that scored the photo; -1: none.
        place: (N,) int32 row of the photo in that fold's files.
        folds: folders of the folds.
        missing: names of folds whose files are gone.
    """

    top: NDArray[np.int32]
    probs: NDArray[np.float16]
    asked: NDArray[np.int32]
    suggested: NDArray[np.int32]
    fold: NDArray[np.int8]
    place: NDArray[np.int32]
    folds: tuple[Path, ...]
    missing: tuple[str, ...]


class _Fold(NamedTuple):
    """Results of one fold. rows: (M,) row of each scored photo, -1 if it is gone; target, top: numbers of classes."""

    rows: NDArray[np.int64]
    target: NDArray[np.int32]
    top: NDArray[np.int32]
    probs: NDArray[np.float32]


class _Best(NamedTuple):
    """Best classes of some photos: (M, K) numbers of classes, and their probabilities."""

    top: NDArray[np.integer]
    probs: NDArray[np.float32]


def read_suggestions(photos: Photos, stages: Path) -> Suggestions:
    """Suggestions for the photos of a data version; `stages` is the folder runs/stages of the workspace."""
    count, names = len(photos), scorers(photos)
    top, probs = np.full((count, KEEP), -1, np.int32), np.zeros((count, KEEP), np.float16)
    fold, place = np.full(count, -1, np.int8), np.zeros(count, np.int32)
    present = [name for name in names if (stages / name / "scores.parquet").is_file()]
    for group in _of_one_version(photos, present):
        parts = {name: _read(stages / name / "scores.parquet", photos) for name in group}
        label = _label_of_number([*parts.values()], photos)
        for rows, found in _by_scorer(photos, parts):
            width = found.top.shape[1]
            top[rows, :width], probs[rows, :width] = label[found.top], found.probs
        for name, part in reversed(parts.items()):
            held = np.flatnonzero(part.rows >= 0)
            fold[part.rows[held]], place[part.rows[held]] = present.index(name), held
    probs[top < 0] = 0
    asked = np.where(photos.decision.is_one_of([RELABELLED]), photos.given.codes, photos.label.codes).astype(np.int32)
    folds, missing = tuple(stages / name for name in present), tuple(name for name in names if name not in present)
    return Suggestions(top, probs, asked, _suggested(photos, top, asked), fold, place, folds, missing)


def scorers(photos: Photos) -> list[str]:
    """Names of all folds that scored a photo of this version."""
    return list(dict.fromkeys(name for value in photos.scored_by.values for name in _names(value)))


def _names(scored_by: str) -> list[str]:
    names = scored_by.split()
    return [] if names[:1] and names[0].rstrip(":") == PERSON else names


def _of_one_version(photos: Photos, present: Sequence[str]) -> Iterator[list[str]]:
    """The folds in groups that scored one version: those that scored the same validation photos."""
    left = dict.fromkeys(present)
    for value in sorted(photos.scored_by.values, key=lambda value: -len(value.split())):
        if group := [name for name in _names(value) if name in left]:
            yield group
            left = {name: None for name in left if name not in group}


def _read(path: Path, photos: Photos) -> _Fold:
    table = pq.read_table(path, columns=["id", "target", "top", "probs"])
    ids = numbers(table["id"])
    rows = np.minimum(np.searchsorted(photos.id, ids), len(photos) - 1)
    rows[photos.id[rows] != ids] = -1
    return _Fold(rows, table["target"].to_numpy(), _matrix(table["top"]), _matrix(table["probs"]))


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    flat = column.combine_chunks()
    return np.asarray(flat.flatten()).reshape(-1, flat.type.list_size)


def _label_of_number(parts: Sequence[_Fold], photos: Photos) -> NDArray[np.int32]:
    """(C,) code of the label that each number of these folds stands for; -1 where no photo says so."""
    target, rows = (np.concatenate(each) for each in zip(*((part.target, part.rows) for part in parts), strict=True))
    size = 1 + max(int(target.max(initial=-1)), *(int(part.top.max(initial=-1)) for part in parts))
    known = (target >= 0) & (rows >= 0)
    pair = target[known].astype(np.int64) * len(photos.classes) + photos.given.codes[rows[known]]
    pairs, counts = np.unique(pair, return_counts=True)
    pairs = pairs[np.argsort(counts, kind="stable")]  # the most frequent label of a number is assigned last, and stays
    label = np.full(size, -1, np.int32)
    label[pairs // len(photos.classes)] = pairs % len(photos.classes)
    return label


def _by_scorer(photos: Photos, parts: dict[str, _Fold]) -> Iterator[tuple[NDArray[np.int64], _Best]]:
    """Rows of photos with their best classes: those of the one fold that scored a photo, or the mean over several folds."""
    for code, value in enumerate(photos.scored_by.values):
        chosen = [(parts[name], _places(parts[name], photos, code)) for name in _names(value) if name in parts]
        for start in range(0, min((len(places) for _, places in chosen), default=0), BLOCK):
            block = [(part, places[start : start + BLOCK]) for part, places in chosen]
            yield block[0][0].rows[block[0][1]], _best(block)


def _places(part: _Fold, photos: Photos, scored_by: int) -> NDArray[np.int64]:
    """Rows of a fold's file whose photos have this `scored_by`, in the order of the photos."""
    places = np.flatnonzero(part.rows >= 0)
    places = places[photos.scored_by.codes[part.rows[places]] == scored_by]
    return places[np.argsort(part.rows[places])]


def _best(block: list[tuple[_Fold, NDArray[np.int64]]]) -> _Best:
    if len(block) == 1:
        part, places = block[0]
        return _Best(part.top[places], part.probs[places])
    found = mean([_scores(part, places) for part, places in block])
    return _Best(found.top, found.probs)


def _scores(part: _Fold, places: NDArray[np.int64]) -> Scores:
    ids, probs = part.rows[places].astype(np.str_), part.probs[places]
    return Scores(ids, part.target[places].astype(np.int64), probs[:, 0], part.top[places].astype(np.int64), probs)


def _suggested(photos: Photos, top: NDArray[np.int32], asked: NDArray[np.int32]) -> NDArray[np.int32]:
    other = (top >= 0) & (top != asked[:, None])
    first = top[np.arange(len(top)), np.argmax(other, axis=1)]
    in_doubt = photos.decision.is_one_of(FLAGGED) | (top[:, 0] != asked)
    found = np.where(other.any(axis=1) & in_doubt, first, np.int32(-1))
    return np.where(photos.decision.is_one_of([RELABELLED]), photos.label.codes, found).astype(np.int32)
