"""Suggested classes from the results of folds (flows.review.suggestions)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.review.photos import Photos
from flows.review.suggestions import Suggestions, read_suggestions
from tests.reviewing import photos_of, write_fold


def named(photos: Photos, found: Suggestions, row: int) -> list[str]:
    return [photos.classes[code] for code in found.top[row] if code >= 0]


def test_numbers_of_classes_mean_what_they_meant_when_the_fold_scored(tmp_path: Path) -> None:
    """Today "ale" comes first and moves every number; it was delivered after the fold had scored."""
    photos = photos_of(
        ["ale", "milk", "tea", "milk", "tea"], scored_by=["", *["f"] * 4], decision=["", "dropped", "", "", ""]
    )
    top, probs = [["tea", "milk"], ["tea", "milk"], ["milk", "tea"], ["tea", "milk"]], [[0.75, 0.25]] * 4
    write_fold(tmp_path, "f", photos, [1, 2, 3, 4], numbers=["milk", "tea"], top=top, probs=probs)
    found = read_suggestions(photos, tmp_path)
    assert [named(photos, found, row) for row in range(5)] == [[], *top]
    assert found.probs[1].tolist() == [0.75, 0.25, *[0] * 8]
    assert [photos.classes[code] if code >= 0 else "" for code in found.suggested] == ["", "tea", "", "", ""]


def test_the_majority_names_a_number_and_one_that_no_photo_names_stays_empty(tmp_path: Path) -> None:
    """One photo has a target of another class than its given label: a person wrote that label before it was scored."""
    photos = photos_of(["milk", "milk", "tea", "tea"], scored_by=["f"] * 4)
    write_fold(tmp_path, "f", photos, range(4), numbers=["milk", "rum", "tea"], top=[["rum", "milk"]] * 4,
               probs=[[0.5, 0.25]] * 4, targets=["milk", "milk", "tea", "milk"])  # fmt: skip
    found = read_suggestions(photos, tmp_path)
    assert [named(photos, found, row) for row in range(4)] == [["milk"]] * 4
    assert found.probs[0, :2].tolist() == [0, 0.25]


def test_validation_photos_get_the_mean_of_all_folds(tmp_path: Path) -> None:
    photos = photos_of(["a", "b", "c", "a"], scored_by=["f", "g", "f", "f g"])
    probs = [[0.5, 0.25], [0.5, 0.25], [0.75, 0.125]]
    write_fold(tmp_path, "f", photos, [0, 2, 3], numbers="abc", top=["ab", "ca", "ba"], probs=probs)
    write_fold(tmp_path, "g", photos, [1, 3], numbers="abc", top=["ba", "ca"], probs=[[0.5, 0.25], [0.25, 0.125]])
    found = read_suggestions(photos, tmp_path)
    assert named(photos, found, 3)[0] == "b"
    mean = {photos.classes[code]: float(p) for code, p in zip(found.top[3], found.probs[3], strict=True) if code >= 0}
    assert mean == {"b": 0.375, **({"a": 0.125} if "a" in mean else {"c": 0.125})}
    assert [found.folds[fold].name for fold in found.fold] == ["f", "g", "f", "f"]
    assert found.place.tolist() == [0, 0, 1, 2]


def test_a_relabelled_photo_suggests_its_label_and_asks_about_the_given_one(tmp_path: Path) -> None:
    photos = photos_of(["a", "b"], label=["b", "b"], decision=["relabelled", ""])
    found = read_suggestions(photos, tmp_path)
    assert (found.asked.tolist(), found.suggested.tolist()) == ([0, 1], [1, -1])


def test_a_fold_whose_files_are_gone_is_named(tmp_path: Path) -> None:
    photos = photos_of(["a", "b", "b"], scored_by=["f", "gone", "person: seen in the shop"])
    write_fold(tmp_path, "f", photos, [0], numbers="ab", top=["ba"], probs=[[0.75, 0.25]])
    found = read_suggestions(photos, tmp_path)
    assert found.missing == ("gone",)
    assert [named(photos, found, row) for row in (1, 2)] == [[], []]
    assert found.fold.tolist() == [0, -1, -1]


@pytest.mark.parametrize("count", [0, 1])
def test_a_version_that_no_fold_scored(tmp_path: Path, count: int) -> None:
    found = read_suggestions(photos_of(["a"] * count), tmp_path)
    assert (found.top.shape, found.missing, np.all(found.suggested == -1)) == ((count, 10), (), True)
