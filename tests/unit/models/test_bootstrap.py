"""Validation gain of a step: paired, with equal weight per class, and as certain as the photos allow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.bootstrap import Gain, auroc, class_share, differences, gain, standard_error


def test_all_classes_weigh_the_same() -> None:
    target = np.array([0, 0, 0, 1])
    before, after = np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 1], bool)
    found = gain(before, after, target, confidence=0.9)
    assert (found.before, found.after) == pytest.approx((0.5, (2 / 3 + 1) / 2))
    assert (found.photos, found.classes) == (4, 2)
    assert class_share(target).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_a_clear_gain_stays_and_a_loss_does_not() -> None:
    target = np.arange(400) % 8
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.5
    after = before | (rng.random(400) < 0.2)
    assert gain(before, after, target, confidence=0.95).stays
    assert not gain(after, before, target, confidence=0.95).stays
    assert not gain(before, before, target, confidence=0.5).stays  # nothing gained is nothing proven


def test_a_step_that_may_lose_something_stays_if_it_is_proven_to_lose_less() -> None:
    target = np.arange(400) % 8
    before = np.random.default_rng(0).random(400) < 0.7
    after = before & (np.arange(400) % 50 > 0)  # loses about a point and a half
    low = gain(before, after, target, confidence=0.9).low
    assert -0.03 < low < 0
    for fall, stays in ((0.0, False), (-low - 1e-6, False), (-low + 1e-6, True), (0.05, True)):
        assert gain(before, after, target, confidence=0.9, fall=fall).stays == stays


def test_the_bound_holds_as_often_as_it_says() -> None:
    """About one in ten steps without a true gain is kept at 90 %."""
    target, rng, taken = np.repeat(np.arange(20), 10), np.random.default_rng(1), 0
    for seed in range(200):
        before, after = rng.random(200) < 0.6, rng.random(200) < 0.6
        taken += gain(before, after, target, confidence=0.9, seed=seed).stays
    assert 8 <= taken <= 36


def test_what_both_agree_on_makes_it_surer() -> None:
    rng, target = np.random.default_rng(2), np.arange(300) % 10
    before = rng.random(300) < 0.5
    similar = before ^ (rng.random(300) < 0.05)
    other = rng.random(300) < 0.5
    assert standard_error(similar, before, target, seed=0) < standard_error(other, before, target, seed=0) / 2


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(0, 5))
def test_differences_are_those_of_a_slow_loop(photos: list[tuple[int, bool, bool]], seed: int) -> None:
    target, one, other = (np.array(column) for column in zip(*photos, strict=True))
    found = differences(one, other, target, seed=seed, draws=3)
    rng, counts = np.random.default_rng(seed), np.bincount(target)
    for value in found:
        rows = rng.integers(len(target), size=len(target))
        up = sum((int(one[r]) - int(other[r])) / counts[target[r]] for r in rows)
        assert value == pytest.approx(up / sum(1 / counts[target[r]] for r in rows), abs=1e-9)
    assert np.all(np.abs(found) <= 1)


def test_without_confidence_every_step_is_kept() -> None:
    target = np.arange(40) % 4
    assert gain(np.ones(40, bool), np.zeros(40, bool), target, confidence=0).stays


def test_without_photos_the_recipe_has_the_word() -> None:
    none = np.empty(0, bool)
    found = gain(none, none, np.empty(0, np.int64), confidence=0.9)
    assert found.stays
    assert math.isnan(found.low)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["low"] is None
    assert found.to_dict()["interval"] == [None, None]


def test_the_interval_is_the_same_whatever_a_step_has_to_prove() -> None:
    rng = np.random.default_rng(0)
    target, before, after = np.arange(400) % 4, rng.random(400) < 0.5, rng.random(400) < 0.7
    strict, lenient = (gain(before, after, target, confidence=confidence) for confidence in (0.95, 0))
    assert strict.interval == lenient.interval
    assert strict.interval[0] == strict.low < strict.after - strict.before < strict.interval[1]


def test_a_gain_is_plain_for_json() -> None:
    assert Gain(0.5, 0.75, 0.1234567, (0.1, 0.375), 10, 3, stays=True).to_dict() == {
        "before": 0.5, "after": 0.75, "low": 0.123457, "interval": [0.1, 0.375], "photos": 10, "classes": 3, "stays": True,
    }  # fmt: skip


def test_the_area_is_its_definition() -> None:
    draw = np.random.default_rng(0)
    one, other = np.round(draw.random(30), 1), np.round(draw.random(40), 1)  # rounded, so that there are ties
    pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other]
    assert auroc(one, other) == pytest.approx(np.mean(pairs))
