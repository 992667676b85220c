"""Nearest neighbours of a photo (flows.review.neighbours)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.review import neighbours
from flows.review.neighbours import nearest
from flows.review.photos import Photos
from flows.review.suggestions import read_suggestions
from tests.reviewing import photos_of, write_fold

COUNT = 60


@pytest.fixture
def photos() -> Photos:
    return photos_of(["a", "b"] * (COUNT // 2), scored_by=["f"] * (COUNT // 2) + ["g"] * (COUNT // 2))


def write(stages: Path, photos: Photos, name: str) -> np.ndarray:
    """Vectors of all photos, in the files of two folds, whose rows run backwards."""
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float16)
    for fold, rows in (("f", range(COUNT // 2)), ("g", range(COUNT // 2, COUNT))):
        backwards = [*reversed(rows)]
        folder = write_fold(
            stages, fold, photos, backwards, numbers="ab", top=["ab"] * len(rows), probs=[[0.75, 0.25]] * len(rows)
        )
        np.save(folder / name, vectors[backwards])
    return vectors


@pytest.mark.parametrize(("name", "others"), [("features.npy", range(COUNT)), ("embeddings.npy", range(COUNT // 2))])
def test_neighbours_equal_those_of_a_full_comparison(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch, name: str, others: range
) -> None:
    """Embeddings of different networks cannot be compared; features of a shared backbone can."""
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    vectors = write(tmp_path, photos, name).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = sorted((row for row in others if row != 3), key=lambda row: -float(unit[row] @ unit[3]))[:8]
    found = nearest(photos, read_suggestions(photos, tmp_path), 3)
    assert [each.photo for each in found] == [photos.name(row) for row in expected]
    assert found[0].similarity == pytest.approx(unit[expected[0]] @ unit[3], abs=1e-3)
    assert found[0].label == photos.label[expected[0]]


def test_candidates_are_few_and_of_likely_classes(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PER_CLASS", 3), ("SAMPLE", 4), ("RUN", 2)):
        monkeypatch.setattr(neighbours, name, value)
    write(tmp_path, photos, "features.npy")
    found = nearest(photos, read_suggestions(photos, tmp_path), 30, count=COUNT)
    assert {int(each.photo, 16) - 1 for each in found} == {0, 1, 2, 3, 4, 5, 58, 59}


def test_without_vectors_there_are_no_neighbours(tmp_path: Path, photos: Photos) -> None:
    found = read_suggestions(photos, tmp_path)
    assert nearest(photos, found, 0) == []
