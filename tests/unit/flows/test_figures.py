"""The figures of a retraining, from arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows.report.figures import classifiers, confidences, confusions, reliability, tail, with_photos


def test_scores_are_counted_by_tenths_and_by_decision() -> None:
    score = np.array([0.0, 0.05, 0.45, 0.5, 0.97, 1.0, np.nan, np.nan], np.float32)
    decision = np.array(["dropped", "doubted", "relabelled", "", "", "", "conflict", "checked"], object)
    rows = confidences(score, decision)
    assert rows[0] == {"score": "0.0 to 0.1", "believed": 0, "suspect": 2, "dropped": 1, "doubted": 1, "relabelled": 0}
    assert rows[4] == {"score": "0.4 to 0.5", "believed": 0, "suspect": 1, "dropped": 0, "doubted": 0, "relabelled": 1}
    assert [row["believed"] for row in rows] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 2], "0.5 is believed, and 1.0 has a place"


def test_photos_without_scores_make_no_figure() -> None:
    assert confidences(np.full(3, np.nan, np.float32), np.array(["", "", "conflict"], object)) == []


def balance(method: str, taken: float, **curves: list[tuple[float, float]]) -> dict[str, Any]:
    """The parts of a member's balance.json that the figures read."""
    candidates = [{"method": name, "curve": curve} for name, curve in curves.items()]
    return {"chosen": {"method": method, "tau": taken}, "candidates": candidates}


def test_accuracies_are_averaged_over_the_members() -> None:
    one = balance("tau", 0.5, none=[(0.0, 0.5)], tau=[(0.0, 0.5), (0.5, 0.75)])
    other = balance("none", 0.0, none=[(0.0, 0.25)], tau=[(0.0, 0.25), (0.5, 0.25)])
    rows = [tuple(row.values()) for row in classifiers([one, other])]
    assert rows == [
        ("none", 0.0, 0.375, 0.25, 0.5, "2"),
        ("tau", 0.0, 0.375, 0.25, 0.5, ""),
        ("tau", 0.5, 0.5, 0.25, 0.75, "1"),
    ]


def test_a_long_curve_is_thinned_except_where_a_member_took_it() -> None:
    curve = [(round(0.05 * step, 2), 0.5) for step in range(41)]
    rows = classifiers([balance("tau", 0.35, tau=curve), balance("tau", 0.25, tau=curve)])
    shown = {row["strength"]: row["taken by member"] for row in rows}
    assert list(shown) == [0.0, 0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert (shown[0.25], shown[0.35]) == ("2", "1")


def test_without_validation_photos_there_is_no_curve() -> None:
    assert classifiers([balance("none", 0.0, none=[])]) == []


def test_confusions_are_named_and_the_most_frequent_comes_first() -> None:
    target = np.array([0, 0, 0, 0, 1, 1, 2, -1])
    ranked = np.array([[1], [0], [1], [2], [1], [-2], [2], [0]])
    rows = [tuple(row.values()) for row in confusions(ranked, target, ["tea", "milk", "soap"])]
    assert rows == [("tea", "milk", 2, 4), ("tea", "soap", 1, 4), ("milk", "no product", 1, 2)]


@pytest.mark.parametrize("count", [0, 3])
def test_without_errors_there_are_no_confusions(count: int) -> None:
    target = np.arange(count)
    assert confusions(target[:, None], target, ["a", "b", "c"]) == []


def test_classes_are_grouped_by_octaves_of_their_training_photos() -> None:
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 9])
    target = np.array([0, 1, 2, 2, 3, 4, 5, 6, -1])  # none of the last class
    ranked = np.array([[1], [1], [2], [0], [0], [4], [4], [-2], [0]])
    rows = [tuple(row.values()) for row in tail(ranked, target, counts)]
    assert rows == [
        ("0", 1, 1, 0.0),
        ("1", 1, 1, 1.0),
        ("2 to 3", 2, 3, 0.25),
        ("4 to 7", 2, 2, 0.5),
        ("8 to 15", 1, 1, 0.0),
    ]


def test_without_test_photos_there_is_no_tail() -> None:
    assert tail(np.empty((0, 1), np.int64), np.empty(0, np.int64), np.array([3, 4])) == []


def test_probabilities_are_compared_with_what_is_right() -> None:
    probability = np.array([0.95, 0.91, 1.0, 0.5, 0.55, 0.99], np.float32)
    ranked, target = np.array([[0], [1], [2], [0], [1], [-2]]), np.array([0, 1, 0, -1, 1, 1])
    low, high = reliability(probability, ranked, target)
    assert (low["probability"], low["photos"], low["right"]) == ("0.5 to 0.6", 2, 0.5), (
        "a label it does not know is wrong"
    )
    assert (high["probability"], high["photos"], high["right"]) == ("0.9 to 1.0", 3, 2 / 3), (
        "a rejected photo does not count"
    )
    assert (low["mean probability"], high["mean probability"]) == pytest.approx((0.525, 2.86 / 3))
    assert reliability(probability[:0], ranked[:0], target[:0]) == []


def test_confusions_are_shown_by_a_photo_and_one_of_what_it_was_taken_for() -> None:
    columns: dict[str, Any] = {
        "id": np.array(["a", "b", "c", "d", "e"], object),
        "split": np.array(["train", "train", "test", "test", "test"], object),
        "kept": np.array([True, True, True, False, True]),
        "target": np.array([0, 1, 0, 0, 1]),
        "classes": ["tea", "milk"],
    }
    manifest: Any = SimpleNamespace(**columns)
    ranked, target = np.array([[1], [-2]]), np.array([0, 1])  # of the photos c and e
    rows = with_photos(confusions(ranked, target, ["tea", "milk"]), ranked, target, manifest)
    assert [(row["shows"], row["taken for"], row["example"], row["compare"]) for row in rows] == [
        ("tea", "milk", "c", "b"),
        ("milk", "no product", "e", None),
    ]
