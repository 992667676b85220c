"""Draws of an epoch, folds, and selections per class."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import distributed
from models.data.samplers import Sampler, best_of_class, class_shares, draw_epoch, folds, spread_over_classes
from models.recipe.config import Train

LABELS = np.repeat(np.arange(3), [6400, 1600, 400])
ORDER = np.random.default_rng(0).permutation(len(LABELS))


@pytest.mark.parametrize(("power", "expected"), [(0.0, [1, 1, 1]), (0.5, [4, 2, 1]), (1.0, [16, 4, 1])])
def test_a_class_is_drawn_in_proportion_to_its_size_to_the_power(power: float, expected: list[float]) -> None:
    labels = LABELS[ORDER]
    drawn = draw_epoch(labels, power=power, seed=1, epoch=0)
    times = np.bincount(labels[drawn])
    assert times == pytest.approx(len(labels) * np.array(expected) / sum(expected), abs=1)


@pytest.mark.parametrize("balanced", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_shares_are_the_published_ones(power: float, balanced: float) -> None:
    """Kang et al., ICLR 2020: n^q / sum n^q (equation 1), and its mixture with 1 / C (equation 2)."""
    counts = [6400, 1600, 0, 400]
    powers = [n**power if n else 0 for n in counts]
    slow = [
        (1 - balanced) * each / sum(powers) + balanced * bool(n) / 3 for each, n in zip(powers, counts, strict=True)
    ]
    assert class_shares(np.array(counts), power=power, balanced=balanced) == pytest.approx(slow)


def test_a_photo_comes_again_only_after_all_of_its_class_came() -> None:
    labels = np.repeat([0, 1, 2], [5, 500, 1])
    for epoch in range(5):
        drawn = draw_epoch(labels, power=0.0, seed=1, epoch=epoch)
        times = np.bincount(drawn, minlength=506)
        for rows in (slice(0, 5), slice(5, 505), slice(505, 506)):
            assert times[rows].max() - times[rows].min() <= 1
        assert len(set(drawn[:20].tolist())) > 5, "classes are mixed"


@pytest.mark.parametrize("length", [7, 30, 100])
def test_an_epoch_is_as_long_as_asked_and_goes_through_all_photos_in_turn(length: int) -> None:
    labels = np.zeros(30, np.int64)
    drawn = [draw_epoch(labels, power=1.0, seed=1, epoch=epoch, length=length) for epoch in range(30)]
    assert [len(each) for each in drawn] == [length] * 30
    for turn in np.concatenate(drawn).reshape(-1, 30):
        assert sorted(turn) == list(range(30)), "every photo once, before any comes again"
    assert len(draw_epoch(labels, power=0.0, seed=1, epoch=0, length=length)) == length


def test_power_1_draws_every_photo_once() -> None:
    assert sorted(draw_epoch(LABELS, power=1.0, seed=1, epoch=3)) == list(range(len(LABELS)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_order_depends_on_seed_and_epoch_alone(power: float) -> None:
    first = draw_epoch(LABELS, power=power, seed=1, epoch=2)
    assert np.array_equal(first, draw_epoch(LABELS, power=power, seed=1, epoch=2))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 1}):
        assert not np.array_equal(first, draw_epoch(LABELS, power=power, **other))


def sampler(**keys: Any) -> Sampler:
    score = np.random.default_rng(1).normal(size=len(LABELS)).astype(np.float32)
    return Sampler(target=LABELS[ORDER], score=score, settings=Train(**keys), seed=4)


def shares(of: Sampler, epoch: int) -> np.ndarray:
    return np.bincount(of.target[of.draw(epoch)], minlength=3) / of.length


@pytest.mark.parametrize("epoch", [0, 5, 9])
def test_progressive_goes_from_instance_to_class_balanced(epoch: int) -> None:
    """Equation 2: (1 - t / T) n / N + t / T / C."""
    t = epoch / 10
    expected = (1 - t) * np.array([6400, 1600, 400]) / 8400 + t / 3
    assert shares(sampler(epochs=10, progressive=True), epoch) == pytest.approx(expected, abs=1 / 8400)


def test_the_last_epochs_are_balanced_or_on_the_best_photos() -> None:
    deferred = sampler(epochs=10, balanced_epochs=3)
    for epoch in range(10):
        expected = [16 / 21, 4 / 21, 1 / 21] if epoch < 7 else [1 / 3] * 3
        assert shares(deferred, epoch) == pytest.approx(np.array(expected), abs=1 / 8400)
    subset = sampler(epochs=10, best_epochs=2, best_photos=30, epoch_length=900)
    best = best_of_class(subset.target, subset.score, count=30)
    for epoch in (8, 9):
        assert set(subset.draw(epoch)) == set(best), "all of them, and no other"
        assert shares(subset, epoch) == pytest.approx([1 / 3] * 3)
    assert not set(subset.draw(7)) <= set(best)


def test_the_order_is_the_same_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take slices of the batches of one order; together, the slices are that order."""
    drawn = sampler(epochs=3, progressive=True, epoch_length=1003).draw(1)
    for workers in (1, 2, 3):
        monkeypatch.setattr(distributed, "world", lambda workers=workers: workers)
        for batch in np.array_split(drawn, 8):
            parts = []
            for rank in range(workers):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                parts.append(batch[distributed.part(len(batch))])
            assert np.array_equal(np.concatenate(parts), batch)


@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 4), st.one_of(st.integers(-3, 3), st.just(np.nan))), min_size=1, max_size=40
    ),
    count=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_the_best_of_each_class_are_those_that_sorting_finds(pairs: list[tuple[int, float]], count: int) -> None:
    labels, score = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs], np.float32)
    slow: list[int] = []
    for label in set(labels.tolist()):
        rows = [i for i in range(len(pairs)) if labels[i] == label]
        slow += sorted(rows, key=lambda i: (np.isnan(score[i]), -score[i] if score[i] == score[i] else 0, i))[:count]
    assert best_of_class(labels, score, count=count).tolist() == sorted(slow)


def test_rows_are_spread_over_the_classes() -> None:
    rows, target = np.array([3, 5, 8, 9, 12, 20]), np.array([1, 0, 2, 0, 1, 2])
    assert spread_over_classes(rows, target, count=3).tolist() == [5, 3, 20]
    assert spread_over_classes(rows, target, count=9).tolist() == [5, 9, 3, 12, 8, 20]
    assert spread_over_classes(rows[:0], target[:0], count=3).tolist() == []


def test_balanced_draws_of_many_classes_need_no_more_than_the_photos() -> None:
    """The published sampler would draw max(n) x C = 400 million times."""
    counts = np.maximum(8_000 // np.arange(1, 50_031), 1)
    labels = np.repeat(np.arange(50_030), counts)
    tracemalloc.start()
    drawn = draw_epoch(labels, power=0.0, seed=1, epoch=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == len(labels)
    assert peak < 15 * labels.nbytes
    assert set(np.bincount(labels[drawn])) == {2, 3}, "115,177 draws of 50,030 classes"


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
