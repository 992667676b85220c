"""Votes of names: a slow formula, gains where evidence is weak, and no harm from vectors that say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from models.cleaning import find_label_errors, label_quality
from models.cleaning.evidence import gather_evidence
from models.cleaning.mixture import fitted
from models.cleaning.name_votes import name_vote
from models.cleaning.rule_input import gather
from models.errors import CleaningError

GAP = 3.0  # between images and texts, as image-text encoders have it, in units of the spread of the classes


def shelf(seed: int, *, each: int = 5, blur: float = 2.0, text: float = 1.0) -> tuple[np.ndarray, ...]:
    """Given and true labels, probabilities, features of 40 classes, and vectors of their names: centres with an error."""
    draw, num = np.random.default_rng(seed), 40
    true = np.repeat(np.arange(num), each)
    given = np.where(draw.random(len(true)) < 0.3, (true + draw.integers(1, num, len(true))) % num, true)
    centres, (images, texts) = draw.normal(size=(num, 32)), GAP * draw.normal(size=(2, 32))
    features = (centres[true] + blur * draw.normal(size=(len(true), 32)) + images).astype(np.float32)
    vectors = (centres + text * draw.normal(size=centres.shape) + texts).astype(np.float32)
    probs = np.exp(2 * np.eye(num)[true] + draw.normal(size=(len(true), num)))
    return given, true, (probs / probs.sum(1, keepdims=True)).astype(np.float32), features, vectors


def weight(y: np.ndarray, p: np.ndarray, x: np.ndarray, vectors: np.ndarray) -> float:
    """Learnt weight of the vote of names."""
    evidence = gather_evidence(gather(y, p, x, name_vectors=vectors), count=10, ridge=0.5, most=1000)
    return float(fitted(evidence)[1].weights[-1])


def f1(seeds: range, change: str = "", *, each: int = 5, text: float = 1.0) -> float:
    """Mean F1 with vectors as they are, shuffled among the classes, random, or none."""
    found = []
    for seed in seeds:
        y, true, p, x, vectors = shelf(seed, each=each, text=text)
        draw = np.random.default_rng(seed)
        changed = {"": vectors, "shuffled": draw.permutation(vectors), "none": None,
                   "random": draw.normal(size=vectors.shape)}[change]  # fmt: skip
        flagged, wrong = find_label_errors(y, p, x, name_vectors=changed, floor_count=1), y != true
        found.append(200 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum()))
    return float(np.mean(found))


def test_the_vote_is_a_cosine_from_both_means_in_units_of_its_spread() -> None:
    draw, present = np.random.default_rng(0), np.array([True] * 6 + [False])
    x, vectors = draw.normal(size=(30, 6)).astype(np.float16), draw.normal(size=(7, 6))
    vectors[2] = 0
    ids = np.array([draw.permutation(6)[:4] for _ in x], np.int32)
    ids[:3, 3] = -1
    table = np.array([[photo @ name / np.linalg.norm(photo) / max(np.linalg.norm(name), 1e-9) for name in vectors]
                      for photo in x.astype(np.float64)])  # fmt: skip
    has = vectors.any(axis=1)
    table[:, has] -= table[:, has].mean(axis=1, keepdims=True)
    table[:, has] -= table[:, has].mean(axis=0)
    known = [[table[i, j] for j in row if j >= 0 and has[j]] for i, row in enumerate(ids)]
    table /= np.sqrt(np.mean(np.concatenate([np.array(each) - np.mean(each) for each in known]) ** 2))
    slow = [[*(table[i, j] if j >= 0 else 0.0 for j in row),
             np.log(np.mean([np.exp(table[i, j]) for j in range(7) if present[j] and j not in row]))]
            for i, row in enumerate(ids)]  # fmt: skip
    assert name_vote(x, vectors, ids, present) == pytest.approx(np.array(slow), abs=1e-4)
    assert name_vote(x, 100 * vectors, ids, present) == pytest.approx(np.array(slow), abs=1e-4)


def test_a_sample_stands_for_many_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, present = np.random.default_rng(0), np.ones(300, np.bool_)
    x, vectors = draw.normal(size=(50, 8)), draw.normal(size=(300, 8))
    ids = draw.integers(0, 300, (50, 1)).astype(np.int32)
    every = name_vote(x, vectors, ids, present)
    monkeypatch.setattr("models.cleaning.name_votes.SAMPLE", 150)
    some = name_vote(x, vectors, ids, present)
    assert np.array_equal(some[:, :-1], every[:, :-1])
    assert some[:, -1] == pytest.approx(every[:, -1], abs=0.3)


@pytest.mark.parametrize("vectors", [np.zeros((4, 3)), np.ones((4, 3))])
def test_vectors_that_are_none_or_all_the_same_do_not_vote(vectors: np.ndarray) -> None:
    x, ids, present = np.random.default_rng(0).normal(size=(9, 3)), np.tile([0, 1, 2], (9, 1)), np.ones(4, np.bool_)
    assert not name_vote(x, vectors, ids, present).any()
    assert name_vote(x[:0], vectors, ids[:0], present).shape == (0, 4)


def test_names_find_more_errors_where_the_evidence_is_weak() -> None:
    seeds = range(4)
    assert f1(seeds) > f1(seeds, "none") + 4


@pytest.mark.parametrize("change", ["shuffled", "random"])
def test_vectors_of_other_classes_change_next_to_nothing(change: str) -> None:
    seeds = range(4)
    assert f1(seeds, change, each=12) == pytest.approx(f1(seeds, "none", each=12), abs=0.5)
    y, _, p, x, vectors = shelf(0, each=12)
    assert weight(y, p, x, np.random.default_rng(1).permutation(vectors)) < 0.2 < weight(y, p, x, vectors)


def test_poor_vectors_cost_next_to_nothing() -> None:
    seeds = range(4)
    assert f1(seeds, each=12, text=3) > f1(seeds, "none", each=12) - 0.5


def test_classes_without_a_vector_stand_at_the_mean_of_their_photos() -> None:
    y, _, p, x, vectors = shelf(0)
    vectors[::2] = 0
    data = gather(y, p, x, name_vectors=vectors)
    evidence = gather_evidence(data, count=10, ridge=0.5, most=1000)
    assert not evidence.kinds[-1][:, :-1][~vectors.any(axis=1)[evidence.ids]].any()
    none = label_quality(y, p, x, name_vectors=np.zeros_like(vectors))
    assert none == pytest.approx(label_quality(y, p, x), abs=1e-5)


def test_names_belong_to_one_of_several_encoders() -> None:
    y, _, p, x, vectors = shelf(0)
    other = np.random.default_rng(2).normal(size=(len(y), 24))
    first = label_quality(y, p, [x, other], name_vectors=vectors)
    assert np.array_equal(first, label_quality(y, p, [x, other], name_vectors=[vectors, None]))
    swapped = label_quality(y, p, [other, x], name_vectors=[None, vectors])
    assert swapped == pytest.approx(first, abs=1e-2)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((40, 31)), r"name_vectors: shape \(40, 31\) for 40 classes and embeddings of 32 numbers"),
        (np.ones((39, 32)), r"name_vectors: shape \(39, 32\)"),
        ([None, None], "name_vectors: 2 for 1 encoders"),
        (np.where(np.eye(40, 32) > 0, np.nan, 1), "name_vectors: NaN or infinity in 32 rows, first in row 0"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vectors: np.ndarray, message: str) -> None:
    y, _, p, x, _ = shelf(0)
    with pytest.raises(CleaningError, match=message):
        label_quality(y, p, x, name_vectors=vectors)
