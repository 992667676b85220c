"""Photos to review in memory, and folds that scored them, for tests of flows.review."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flows.review.photos import Photos, Words
from flows.review.queue import Queue
from flows.review.selections import Selections
from flows.review.suggestions import read_suggestions
from models.data.manifest import SPLITS
from models.evaluation.scores import Scores, write_scores

VERSION = "a" * 32


def words(texts: Sequence[str], values: Sequence[str] = ()) -> Words:
    """A column of texts; `values` come first, in their order."""
    listed = [*dict.fromkeys([*values, *texts])]
    return Words(np.array([listed.index(text) for text in texts], np.int32), listed)


def photos_of(
    given: Sequence[str],
    *,
    label: Sequence[str] = (),
    decision: Sequence[str] = (),
    score: Sequence[float] = (),
    scored_by: Sequence[str] = (),
    split: Sequence[str] = (),
    source: Sequence[str] = (),
) -> Photos:
    """Photos with ids 1, 2, ...; what is not given is empty, or for training."""
    count = len(given)
    classes = sorted({*given, *label})
    decided = words(decision or [""] * count)
    return Photos(
        version=VERSION,
        folder=Path(),
        id=np.arange(1, count + 1, dtype=np.uint64),
        given=words(given, classes),
        label=words(label or given, classes),
        split=words(split or ["train"] * count, SPLITS),
        decision=decided,
        scored_by=words(scored_by or [""] * count),
        source=words(source or [""] * count),
        shard=words([""] * count),
        kept=~decided.is_one_of(["dropped"]),
        score=np.array(score or [np.nan] * count, np.float32),
        offset=np.zeros(count, np.int64),
        size=np.zeros(count, np.int32),
    )


def write_fold(
    stages: Path,
    name: str,
    photos: Photos,
    rows: Sequence[int],
    *,
    numbers: Sequence[str],
    top: Sequence[Sequence[str]],
    probs: Sequence[Sequence[float]],
    targets: Sequence[str] | None = None,
) -> Path:
    """Scores of a fold, for which class number i was numbers[i]; returns its folder."""
    place = {label: number for number, label in enumerate(numbers)}
    given = targets or [photos.given[row] for row in rows]
    folder = stages / name
    folder.mkdir(parents=True)
    scores = Scores(
        id=np.array([photos.name(row) for row in rows]),
        target=np.array([place.get(label, -1) for label in given]),
        p_label=np.zeros(len(rows), np.float32),
        top=np.array([[place[label] for label in each] for each in top]),
        probs=np.array(probs, np.float32),
    )
    write_scores(scores, folder / "scores.parquet")
    return folder


def queue_of(photos: Photos, stages: Path, selections: Selections | None = None) -> Queue:
    """Review queue of photos, with the suggestions of the folds in `stages`."""
    return Queue(photos, read_suggestions(photos, stages), selections or Selections())
