"""Every rule against a slow formula, and invariances of label quality."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cleaning import (
    RULES,
    estimate_noise,
    find_label_errors,
    label_quality,
    label_weights,
    suggest_labels,
)
from models.cleaning.joined import JoinedRows
from models.cleaning.rule_input import gather
from models.cleaning.votes import candidate_votes, centre, count_votes, directions, linear_vote, neighbour_labels
from models.errors import CleaningError
from models.recipe.config import Clean, Rule
from tests.unit.models.clusters import as_top_k, clusters

ONE_GROUP = np.zeros(1000, np.int8)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_quality(rule: str, i: int, y: np.ndarray, p: np.ndarray, x: np.ndarray) -> float:
    """Label quality of one photo, by the formula in the docstring of the rule."""
    num, num_classes = p.shape
    others = [j for j in range(num_classes) if j != y[i]]
    means = [p[y == j, j].mean() if (y == j).any() else math.inf for j in range(num_classes)]
    own, other = p[i, y[i]], max(p[i, j] for j in others)
    centred = x - x.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    near = sorted((k for k in range(num) if k != i), key=lambda k: -float(unit[k] @ unit[i]))[:10]
    votes = [sum(y[k] == j for k in near) for j in range(num_classes)]
    if rule == "report":
        return min(1, 0.5 * other / 0.7) if other > own else 1
    if rule == "self_confidence":
        return own / (own + 0.5 * means[y[i]])
    if rule == "log_margin":
        return sigmoid(math.log(own) - math.log(other) + 0.5)
    if rule == "confident_learning":
        confident = [j for j in range(num_classes) if p[i, j] >= means[j]]
        flagged = bool(confident) and max(confident, key=lambda j: p[i, j]) != y[i]
        return 0.5 * own + (0 if flagged else 0.5)
    if rule == "neighbours":
        return sigmoid(math.log1p(votes[y[i]]) - math.log1p(max(votes[j] for j in others)) + 0.5)
    if rule == "product":
        logs = [math.log(p[i, j]) + math.log1p(votes[j]) for j in range(num_classes)]
        return sigmoid(logs[y[i]] - max(logs[j] for j in others) + 0.5)
    assert rule == "linear"
    answer = refit_without(i, y, unit, num_classes)
    return sigmoid(10 * (answer[y[i]] - max(answer[j] for j in others) + 0.05))


def refit_without(i: int, y: np.ndarray, unit: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) output for photo i of a ridge regression fitted to all other photos, with the penalty for all photos."""
    design = np.concatenate([unit, np.ones((len(unit), 1))], axis=1).astype(np.float64)
    rest = np.arange(len(y)) != i
    penalty = 0.5 * len(y) / design.shape[1] * np.eye(design.shape[1])
    fit = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ np.eye(num_classes)[y[rest]])
    return np.asarray(design[i] @ fit)


def test_recipes_accept_the_registered_rules_and_no_others() -> None:
    assert typing.get_args(Rule) == tuple(RULES.components)


@pytest.mark.parametrize("rule", RULES.components)
def test_recipes_know_which_rules_need_embeddings(rule: str) -> None:
    y, _, p, x = clusters(60, num_classes=5)
    without = label_quality_without(y, p, rule)
    uses_embeddings = without is None or not np.array_equal(label_quality(y, p, x, rule=rule), without)
    assert Clean(rule=rule).asks_embeddings == uses_embeddings  # type: ignore[arg-type]


def label_quality_without(y: np.ndarray, p: np.ndarray, rule: str) -> np.ndarray | None:
    """Qualities without embeddings; None if the rule refuses."""
    try:
        return label_quality(y, p, rule=rule)
    except CleaningError:
        return None


@pytest.mark.parametrize("rule", [rule for rule in RULES.components if rule != "posterior"])
def test_a_rule_is_its_formula(rule: str) -> None:
    y, _, p, x = clusters(60, num_classes=5)
    expected = [slow_quality(rule, i, y, p, x) for i in range(len(y))]
    assert label_quality(y, p, x, rule=rule) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("rule", RULES.components)
class TestInvariance:
    def test_to_the_order_and_names_of_classes(self, rule: str) -> None:
        y, _, p, x = clusters()
        new = np.random.default_rng(1).permutation(8)
        moved = np.empty_like(p)
        moved[:, new] = p
        assert label_quality(new[y], moved, x, rule=rule) == pytest.approx(label_quality(y, p, x, rule=rule), abs=1e-4)

    def test_to_the_order_of_photos(self, rule: str) -> None:
        y, _, p, x = clusters()
        order = np.random.default_rng(2).permutation(len(y))
        found = label_quality(y[order], p[order], x[order], rule=rule)
        assert found == pytest.approx(label_quality(y, p, x, rule=rule)[order], abs=1e-4)

    def test_to_scale_and_shift_of_embeddings(self, rule: str) -> None:
        y, _, p, x = clusters()
        assert label_quality(y, p, 7 * x + 3, rule=rule) == pytest.approx(label_quality(y, p, x, rule=rule), abs=2e-3)

    def test_to_classes_without_photos(self, rule: str) -> None:
        y, _, p, x = clusters()
        wider = np.concatenate([p, np.zeros((len(y), 3), np.float32)], axis=1)
        tolerance = 0.01 if rule == "posterior" else 1e-6
        assert label_quality(y, wider, x, rule=rule) == pytest.approx(label_quality(y, p, x, rule=rule), abs=tolerance)

    @pytest.mark.parametrize("num_classes", [8, 14])
    def test_sparse_is_dense_where_k_is_all(self, rule: str, num_classes: int) -> None:
        y, _, p, x = clusters(num_classes=num_classes)
        sparse = label_quality(y, as_top_k(y, p, num_classes), x, rule=rule)
        assert sparse == pytest.approx(label_quality(y, p, x, rule=rule), abs=1e-6)

    def test_blocks_leave_no_trace(self, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
        y, _, p, x = clusters()
        whole = label_quality(y, p, x, rule=rule)
        monkeypatch.setattr("models.cleaning.rule_input.BLOCK_BYTES", 100)
        monkeypatch.setattr("models.cleaning.votes.BLOCK_BYTES", 12_000)
        monkeypatch.setattr("models.cleaning.votes.BLOCK_ROWS", 7)
        assert label_quality(y, p, x, rule=rule) == pytest.approx(whole, abs=1e-4)


def test_identical_photos_have_the_same_quality() -> None:
    y, _, p, _ = clusters()
    twice = np.repeat(np.arange(len(y)), 2)
    for rule in ("report", "self_confidence", "log_margin", "confident_learning"):
        assert (label_quality(y[twice], p[twice], rule=rule) == label_quality(y, p, rule=rule)[twice]).all()


KNOWN_RATES = {"report": 0.5, "self_confidence": 0.85, "confident_learning": 0.8, "log_margin": 0.9, "neighbours": 0.95,
               "product": 0.97, "linear": 0.95, "posterior": 0.98}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.components)
def test_planted_errors_are_found(rule: str) -> None:
    y, true, p, x = clusters(900)
    found, wrong = find_label_errors(y, p, x, rule=rule), y != true
    f1 = 2 * (found & wrong).sum() / (found.sum() + wrong.sum())
    assert f1 > KNOWN_RATES[rule]


@pytest.mark.parametrize("rule", RULES.components)
@pytest.mark.parametrize("wrong", [0.1, 0.4])
def test_the_default_is_no_worse_than_any(rule: str, wrong: float) -> None:
    scores = []
    for name in (rule, "posterior"):
        y, true, p, x = clusters(900, wrong=wrong, seed=5)
        found = label_quality(y, p, x, rule=name) < 0.5
        scores.append(2 * (found & (y != true)).sum() / (found.sum() + (y != true).sum()))
    assert scores[1] >= scores[0] - 0.02


def test_the_confusion_is_found() -> None:
    draw = np.random.default_rng(0)
    _, true, p, x = clusters(3000, num_classes=6, wrong=0)
    y = np.where(draw.random(3000) < np.where(true == 2, 0.4, 0.0), 5, true)  # class 2 is often called 5
    noise = estimate_noise(y, p, x)
    matrix = noise.matrix()
    assert matrix.sum(1) == pytest.approx(np.ones(6))
    assert matrix[2, 5] == pytest.approx(0.4, abs=0.08)
    assert noise.rate == pytest.approx((y != true).mean(), abs=0.02)
    assert (np.diag(matrix)[[0, 1, 3, 4, 5]] > 0.95).all()
    assert (noise.true != noise.given).all()


def test_suggestions_are_the_truth_where_they_are_made() -> None:
    y, true, p, x = clusters(900)
    suggested = suggest_labels(y, p, x)
    changed = suggested != y
    assert (suggested[changed] == true[changed]).mean() > 0.97
    assert changed.sum() > 0.5 * (y != true).sum()
    assert (suggest_labels(y, p, x, confidence=1.0) != y).sum() <= changed.sum()


def test_weights_follow_quality_and_keep_the_best_of_a_class() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [-1])
    quality = np.array([*np.linspace(0.01, 0.1, 10), 0.2, 0.9, 0.3, 0.0])
    weights = label_weights(labels, quality, floor_share=0.3, floor_count=2)
    assert weights[:7] == pytest.approx(quality[:7])
    assert weights[7:10].tolist() == [0.5] * 3
    assert weights[10:] == pytest.approx([0.2, 0.9, 0.5, 1])


def test_groups_are_scored_separately() -> None:
    y, _, p, x = clusters(600)
    groups = np.arange(600) % 3
    turned = x.copy()
    for group, axes in enumerate(np.random.default_rng(3).normal(size=(3, 24, 24))):
        turned[groups == group] = x[groups == group] @ np.linalg.qr(axes)[0].astype(np.float32)
    apart = label_quality(y, p, turned, groups=groups, rule="linear")
    assert apart == pytest.approx(label_quality(y, p, x, groups=groups, rule="linear"), abs=1e-3)


def test_votes_are_exact() -> None:
    y, _, _, x = clusters(80, num_classes=4)
    y[:5] = -1
    ids = np.concatenate([y[:, None], np.tile(np.arange(4), (80, 1))], axis=1).astype(np.int32)
    answers = linear_vote(x, y, ids, groups=ONE_GROUP[:80], num_classes=4)
    near = neighbour_labels(x, y, neighbours=3, groups=ONE_GROUP[:80])
    assert (near >= 0).all()
    unit = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
    judged = np.flatnonzero(y >= 0)
    design = np.concatenate([unit, np.ones((80, 1))], axis=1)
    for i in judged[::9]:
        rest = judged[judged != i]
        penalty = 0.5 * len(judged) / 25 * np.eye(25)
        fit = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ np.eye(4)[y[rest]])
        assert answers[i, 0] == pytest.approx((design[i] @ fit)[y[i]], abs=1e-4)
        closest = sorted(rest, key=lambda k: -float(unit[k] @ unit[i]))[:3]
        assert sorted(near[i]) == sorted(y[closest])


labelled = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 4), min_size=n, max_size=n), st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1, 30])
    )
)


@given(case=labelled, rule=st.sampled_from(sorted(RULES.components)), share=st.floats(0, 1), count=st.integers(1, 8),
       budget=st.floats(0, 1))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_floors_and_budget_hold_for_any_input(
    case: tuple[list[int], int, float], rule: str, share: float, count: int, budget: float
) -> None:
    labels, seed, sharpness = np.array(case[0]), case[1], case[2]
    draw = np.random.default_rng(seed)
    logits = sharpness * draw.normal(size=(len(labels), 5))
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    embeddings = draw.normal(size=(len(labels), 3)) * draw.integers(0, 2, (len(labels), 1))  # some are zero
    quality = label_quality(labels, probs, embeddings, rule=rule)
    wrong = find_label_errors(labels, probs, embeddings, rule=rule, floor_share=share, floor_count=count, budget=budget)
    assert ((quality >= 0) & (quality <= 1)).all()
    assert not wrong[quality >= 0.5].any()
    assert wrong.sum() <= budget * len(labels)
    for label, size in zip(*np.unique(labels[labels >= 0], return_counts=True), strict=True):
        assert (~wrong & (labels == label)).sum() >= min(size, max(count, math.ceil(share * size)))
    assert not wrong[labels < 0].any()


def test_half_the_prior_spares_the_tail() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1], [900, 20])
    p = np.stack([np.full(920, 0.8), np.full(920, 0.2)], axis=1) * draw.uniform(0.9, 1.1, (920, 1))
    p = (p / p.sum(1, keepdims=True)).astype(np.float32)  # a network that follows the class sizes
    assert (label_quality(y, p, rule="log_margin")[y == 1] < 0.5).all()
    assert (label_quality(y, p, rule="log_margin", prior=0.5)[y == 1] >= 0.5).all()


@pytest.mark.parametrize("classes", [3, 8])
def test_candidate_votes_are_those_of_all_pairs_within_the_candidates(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, _, p, x = clusters(400)
    y[:30], groups = -1, np.arange(400) % 2
    ids = gather(y, p, x, groups=groups).best(classes - 1).ids
    monkeypatch.setattr("models.cleaning.votes.BLOCK_BYTES", 30_000)
    votes = candidate_votes(x.astype(np.float16), y, ids, neighbours=10, groups=groups, others=0)
    for i in range(0, 400, 7):
        mean = centre(x.astype(np.float16), np.flatnonzero(groups == groups[i]))
        unit = directions(x.astype(np.float16), mean)
        able = [k for k in range(400) if k != i and groups[k] == groups[i] and y[k] >= 0 and y[k] in ids[i]]
        near = sorted(able, key=lambda k: -float(unit[k] @ unit[i]))[:10]
        assert votes[i].tolist() == [sum(y[k] == j for k in near) if j >= 0 else 0 for j in ids[i]]
    every = count_votes(neighbour_labels(x.astype(np.float16), y, neighbours=10, groups=groups), ids)
    assert (candidate_votes(x.astype(np.float16), y, ids, neighbours=10, groups=groups)[y >= 0] == every[y >= 0]).all()


def test_unlike_photos_of_small_classes_are_no_neighbours() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(400), 4)
    x = np.repeat(draw.normal(size=(400, 16)), 4, axis=0) + 0.1 * draw.normal(size=(1600, 16))
    ids = np.stack([y, (y + 1) % 400, (y + 2) % 400], axis=1).astype(np.int32)
    own, *others = candidate_votes(x, y, ids, neighbours=10, groups=np.zeros(1600, np.int64)).T
    assert (own == 3).all()
    assert np.mean(others) < 0.2, "with the photos of candidates alone, 3.5 of the 10 nearest"


def test_a_photo_is_compared_with_some_photos_of_a_large_class() -> None:
    y, _, p, x = clusters(400)
    ids = gather(y, p, x).best(7).ids
    few = candidate_votes(x, y, ids, neighbours=10, groups=ONE_GROUP[:400], most=1, others=0)
    assert few.max() == 1, "one photo of each class"
    assert few.sum(1).min() >= 7 - 1, "and never itself"


def test_large_groups_are_compared_with_candidates_and_some_others(monkeypatch: pytest.MonkeyPatch) -> None:
    y, true, p, x = clusters(900, num_classes=24, wrong=0.3)
    monkeypatch.setattr(candidate_votes, "__kwdefaults__", {**candidate_votes.__kwdefaults__, "others": 100})
    every, some = (label_quality(y, p, x, most=most) for most in (900, 0))
    assert (every != some).any()
    f1 = [2 * ((q < 0.5) & (y != true)).sum() / ((q < 0.5).sum() + (y != true).sum()) for q in (every, some)]
    assert f1[1] > f1[0] - 0.01
    monkeypatch.delattr("models.cleaning.evidence.neighbour_labels")
    assert (label_quality(y, p, x, most=899) == some).all()


def test_joined_tables_are_scored_like_an_array() -> None:
    y, _, p, x = clusters(400)
    table, row = np.arange(400) % 3, np.arange(400) // 3
    joined = JoinedRows([x[each::3] for each in range(3)], table, row)
    assert (joined[:] == x).all()
    for most in (0, 400):
        assert (
            label_quality(y, p, [joined], groups=table, most=most) == label_quality(y, p, x, groups=table, most=most)
        ).all()
