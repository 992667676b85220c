"""What an epoch draws, and how folds fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.samplers import draw_epoch, folds

LABELS = np.repeat(np.arange(3), [6400, 1600, 400])
ORDER = np.random.default_rng(0).permutation(len(LABELS))


@pytest.mark.parametrize(("power", "expected"), [(0.0, [1, 1, 1]), (0.5, [4, 2, 1]), (1.0, [16, 4, 1])])
def test_a_class_is_drawn_in_proportion_to_its_size_to_the_power(power: float, expected: list[float]) -> None:
    labels = LABELS[ORDER]
    drawn = draw_epoch(labels, power=power, seed=1, epoch=0)
    share = np.bincount(labels[drawn]) / len(labels)
    assert share == pytest.approx(np.array(expected) / sum(expected), abs=0.02)  # 3.6 standard errors


def test_within_a_class_all_photos_are_equal() -> None:
    labels = np.repeat([0, 1], [5, 500])
    times = np.bincount(
        np.concatenate([draw_epoch(labels, power=0.0, seed=1, epoch=e) for e in range(20)]), minlength=505
    )
    assert times[:5] == pytest.approx(np.full(5, 1010), rel=0.12)


def test_power_1_draws_every_photo_once() -> None:
    assert sorted(draw_epoch(LABELS, power=1.0, seed=1, epoch=3)) == list(range(len(LABELS)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_order_depends_on_seed_and_epoch_alone(power: float) -> None:
    first = draw_epoch(LABELS, power=power, seed=1, epoch=2)
    assert np.array_equal(first, draw_epoch(LABELS, power=power, seed=1, epoch=2))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 1}):
        assert not np.array_equal(first, draw_epoch(LABELS, power=power, **other))


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=60), num_folds=st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_folds_spread_every_class_evenly(labels: list[int], num_folds: int) -> None:
    target = np.array(labels)
    fold = folds(target, np.array([f"{i:03}" for i in range(len(target))]), num_folds=num_folds)
    assert fold.shape == target.shape, "every photo is in exactly one fold"
    for label in set(labels):
        sizes = np.bincount(fold[target == label], minlength=num_folds)
        assert len(sizes) == num_folds
        assert sizes.max() - sizes.min() <= 1


def test_single_photos_do_not_all_fall_into_one_fold() -> None:
    fold = folds(np.arange(30), np.array([f"{i:02}" for i in range(30)]), num_folds=3)
    assert np.bincount(fold).tolist() == [10, 10, 10]


def test_a_photo_keeps_its_fold_when_rows_are_reordered() -> None:
    ids = np.array([f"{i:05}" for i in range(len(LABELS))], dtype=object)
    there, back = folds(LABELS, ids, num_folds=3), folds(LABELS[ORDER], ids[ORDER], num_folds=3)
    assert np.array_equal(there[ORDER], back)
