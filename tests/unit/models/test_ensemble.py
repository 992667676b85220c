"""Weights of an ensemble, against slow searches, and what they are worth on photos that did not choose them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from models.evaluation.scores import KEEP, Scores, mean
from models.training.ensemble import PICKS, MemberScores, choose_weights, gather, greedy, search

CLASSES = 12


def member(target: np.ndarray, *, skill: float, seed: int, classes: int = CLASSES) -> Scores:
    """A member that favours the label by `skill`, in logits."""
    logits = np.random.default_rng(seed).normal(size=(len(target), classes)) * 2
    logits[np.arange(len(target)), target] += skill
    probs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    top = np.argsort(-probs, axis=1)[:, :KEEP]
    ids = np.array([f"{i:016x}" for i in range(len(target))])
    return Scores(ids, target, probs[np.arange(len(target)), target], top, np.take_along_axis(probs, top, 1))


def photos(n: int, seed: int = 0) -> np.ndarray:
    """Targets of uneven classes."""
    return np.sort(np.random.default_rng(seed).integers(0, CLASSES, n) ** 2 // CLASSES)


def slow_quality(members: list[Scores], weights: np.ndarray) -> tuple[float, float]:
    """Mean-class accuracy and mean log probability of the labels, class by class, from dense tables."""
    target = members[0].target
    dense = np.zeros((len(target), CLASSES))
    for weight, each in zip(weights, members, strict=True):
        for row in range(len(target)):
            dense[row, each.top[row]] += weight * each.probs[row].astype(np.float64)
    p = sum(weight * each.p_label.astype(np.float64) for weight, each in zip(weights, members, strict=True))
    hit, log_p = dense.argmax(1) == target, np.log(p)
    present = np.unique(target)
    return tuple(float(np.mean([values[target == c].mean() for c in present])) for values in (hit, log_p))  # type: ignore[return-value]


@pytest.fixture
def members() -> list[Scores]:
    target = photos(150)
    return [member(target, skill=skill, seed=seed) for seed, skill in enumerate((2.0, 0.3, 1.5))]


def test_quality_is_that_of_dense_tables(members: list[Scores]) -> None:
    answers = gather(members)
    for weights in (np.array([1, 0, 0]), np.array([0.2, 0.5, 0.3]), np.array([0, 0.5, 0.5])):
        assert answers.quality(weights) == pytest.approx(slow_quality(members, weights), abs=1e-6)
        together = mean(members, weights=weights.tolist())
        assert np.array_equal(answers.hit(weights), together.hit)


def test_greedy_takes_the_best_next_member_and_stops_at_the_best(members: list[Scores]) -> None:
    """Caruana et al. 2004, section 2: with replacement, from nothing."""
    bag: list[int] = []
    path = []
    for _ in range(PICKS):
        options = [[*bag, m] for m in range(3)]
        qualities = [slow_quality(members, np.bincount(option, minlength=3) / len(option)) for option in options]
        bag = options[max(range(3), key=lambda m: np.round(qualities[m], 6).tolist())]
        path.append((np.bincount(bag, minlength=3) / len(bag), max(qualities)))
    best = max(path, key=lambda step: np.round(step[1], 6).tolist())[0]
    assert greedy(gather(members)) == pytest.approx(best)


def test_no_weights_of_a_fine_grid_are_better_than_those_that_were_found(members: list[Scores]) -> None:
    """A search by moves may end in a local maximum of the accuracy; here at most 1 % of all weights are better."""
    answers = gather(members)
    found = answers.quality(search(answers, method="weighted"))
    grid = [np.array([a, b, 20 - a - b]) / 20 for a, b in itertools.product(range(21), repeat=2) if a + b <= 20]
    assert np.mean([answers.quality(weights) > found for weights in grid]) <= 0.01
    assert found > answers.quality(np.full(3, 1 / 3))


@pytest.mark.parametrize("method", ["greedy", "weighted"])
def test_a_member_that_only_harms_leaves(method: str) -> None:
    target = photos(600)
    pair = [member(target, skill=4.0, seed=1), member((target + 1) % CLASSES, skill=6.0, seed=2)]
    wrong = Scores(pair[0].id, target, np.full(len(target), 1e-6, np.float32), pair[1].top, pair[1].probs)
    choice = choose_weights([pair[0], wrong], method=method, confidence=0.95)
    assert choice.weights.tolist() == [1.0, 0.0]
    assert choice.gain is not None
    assert choice.gain.stays


@pytest.mark.parametrize("method", ["greedy", "weighted"])
def test_members_that_are_as_good_count_alike(method: str) -> None:
    """Weights fitted to the photos prove nothing on others, so they are dropped in most of ten cases."""
    even = 0
    for seed in range(10):
        target = photos(120, seed)
        alike = [member(target, skill=1.5, seed=10 * seed + m) for m in range(4)]
        choice = choose_weights(alike, method=method, confidence=0.95)
        assert choice.considered is not None
        even += choice.weights.tolist() == [0.25] * 4
    assert even >= 8


@pytest.mark.parametrize("method", ["uniform", "greedy", "weighted"])
def test_without_a_choice_or_photos_all_count_alike(method: str) -> None:
    one, none = member(photos(5), skill=1, seed=0), member(photos(0), skill=1, seed=0)
    assert choose_weights([one], method=method, confidence=0.9).weights.tolist() == [1.0]
    choice = choose_weights([none, none], method=method, confidence=0.9)
    assert choice.weights.tolist() == [0.5, 0.5]
    assert json.loads(json.dumps(choice.to_dict(), allow_nan=False)) == {"weights": [0.5, 0.5]}


@pytest.mark.parametrize("method", ["greedy", "weighted"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_few_photos_are_enough_to_ask(method: str, n: int) -> None:
    pair = [member(photos(n), skill=2, seed=seed) for seed in (0, 1)]
    choice = choose_weights(pair, method=method, confidence=0.9)
    assert sum(choice.weights) == pytest.approx(1)
    json.dumps(choice.to_dict(), allow_nan=False)


def test_answers_of_a_part_are_a_part_of_the_answers(members: list[Scores]) -> None:
    mask = members[0].target % 2 == 0
    part: MemberScores = gather([each.select(mask) for each in members])
    weights = np.array([0.5, 0.2, 0.3])
    assert gather(members).select(mask).quality(weights) == part.quality(weights)
