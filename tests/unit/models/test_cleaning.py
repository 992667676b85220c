"""Decisions about label issues: the lowest scores first, and never a whole class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.cleaning import attractor_classes, log_margin, worst

photos = st.integers(0, 80).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(-1, 5)), arrays(np.float64, n, elements=st.floats(-30, 30))
    )
)


@given(photos=photos, share=st.floats(0, 1), count=st.integers(1, 8), threshold=st.floats(-5, 1))
@settings(max_examples=150, deadline=None)
def test_the_floor_of_every_class_and_the_worst_first(
    photos: tuple[np.ndarray, np.ndarray], share: float, count: int, threshold: float
) -> None:
    target, margin = photos
    wrong = worst(target, margin, threshold=threshold, floor_share=share, floor_count=count)
    assert wrong.shape == target.shape
    assert not wrong[margin >= threshold].any()
    assert not wrong[target < 0].any(), "a class that the network does not know is never a label issue"
    for label in set(target[target >= 0].tolist()):
        of_class = target == label
        n, kept, suspect = of_class.sum(), of_class & ~wrong, of_class & (margin < threshold)
        floor = min(n, max(count, math.ceil(share * n)))
        assert kept.sum() == max(floor, n - suspect.sum()), "down to the floor, and no further than the suspects"
        if (spared := suspect & ~wrong).any() and (suspect & wrong).any():
            assert margin[wrong & of_class].max() <= margin[spared].min()


def test_planted_errors_are_found() -> None:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(10), 60)
    given_label, swapped = truth.copy(), draw.random(600) < 0.2
    given_label[swapped] = (truth[swapped] + draw.integers(1, 10, swapped.sum())) % 10
    logits = draw.normal(size=(600, 10))
    logits[np.arange(600), truth] += 4
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    others = probs.copy()
    others[np.arange(600), given_label] = 0
    margin = log_margin(probs[np.arange(600), given_label].astype(np.float32), others.max(1).astype(np.float32))
    found = worst(given_label, margin, threshold=-0.5)
    assert (found & swapped).sum() / swapped.sum() > 0.9
    assert (found & swapped).sum() / found.sum() > 0.9


def test_a_rare_class_is_left_alone_and_a_large_one_is_not() -> None:
    target = np.repeat([0, 2], [5, 20])  # class 1 has no photos
    wrong = worst(target, np.full(25, -9.0), threshold=-0.5, floor_share=0.3, floor_count=5)
    assert wrong[target == 0].sum() == 0
    assert wrong[target == 2].sum() == 14


def test_if_most_labels_are_wrong_the_floors_hold_and_a_warning_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    target = np.repeat([0, 1], 50)
    wrong = worst(target, np.zeros(100), threshold=0.5)
    assert np.bincount(target[~wrong]).tolist() == [15, 15]
    assert "70% look wrong" in caplog.text
    caplog.clear()
    worst(target, np.zeros(100), threshold=0.5, budget=0.5)
    assert not caplog.records


def test_what_rare_classes_are_taken_for_most_often() -> None:
    labels = np.array([0] * 9 + [1] * 8 + [2] * 5 + [-1])  # the third with fewest photos is class 2
    suggested = labels.copy()
    suggested[[17, 18, 19]] = 0, 0, 1
    suggested[[0, 9]] = 2, 0  # of large classes, and into the small one
    assert attractor_classes(labels, suggested, num_classes=3).tolist() == [True, False, False]
    suggested[20] = 1
    assert attractor_classes(labels, suggested, num_classes=3).tolist() == [True, True, False], "at a tie both"
    assert not attractor_classes(labels, labels, num_classes=3).any()


def test_a_margin_that_could_not_be_measured_is_no_reason() -> None:
    assert not worst(np.zeros(20, np.int64), np.full(20, np.nan), threshold=-0.5).any()


def test_log_margin_of_certainties_is_finite() -> None:
    p_label = np.array([0, 0, 1, 0.25, 1e-30], np.float32)
    other = np.array([1, 0, 0, 0.5, 1e-30], np.float32)
    cut = math.log(1e12)
    assert log_margin(p_label, other) == pytest.approx([-cut, 0, cut, -math.log(2), 0], rel=1e-6)
    assert log_margin(p_label, other).dtype == np.float64
