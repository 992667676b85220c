"""Scores in a file, their mean, and accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.evaluation.accuracy import accuracy, thirds
from models.evaluation.scores import KEEP, Scores, concatenate, mean, read_scores, write_scores


def dense(n: int, classes: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(n, classes)) * 3
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def scores_of(probs: np.ndarray, first: int = 0) -> Scores:
    n, classes = probs.shape
    ids = np.array([f"{first + i:016x}" for i in range(n)], dtype=str)
    target = np.arange(n) % classes
    top = np.argsort(-probs, axis=1)[:, :KEEP]
    return Scores(ids, target, probs[np.arange(n), target], top, np.take_along_axis(probs, top, 1))


def assert_same(one: Scores, other: Scores) -> None:
    for name in ("id", "target", "p_label", "top", "probs"):
        left, right = getattr(one, name), getattr(other, name)
        assert np.array_equal(left, right), name
        assert left.dtype.kind == right.dtype.kind, name


@pytest.mark.parametrize(("n", "classes"), [(7, 30), (7, 3), (1, 1), (0, 30)])
def test_a_file_gives_back_what_was_written(tmp_path: Path, n: int, classes: int) -> None:
    scores = scores_of(dense(n, classes, 0))
    write_scores(scores, tmp_path / "scores.parquet")
    assert_same(read_scores(tmp_path / "scores.parquet"), scores)


def test_ids_as_the_manifest_holds_them(tmp_path: Path) -> None:
    scores = scores_of(dense(0, 4, 0))
    write_scores(Scores(scores.id.astype(object), *list(vars(scores).values())[1:]), tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet").id.dtype.kind == "U"


@pytest.mark.parametrize(("n", "classes"), [(600, 30), (5, 4), (0, 30)])
def test_the_mean_is_the_dense_one_over_ten_kept_classes(n: int, classes: int) -> None:
    members = [dense(n, classes, seed) for seed in (1, 2, 3)]
    together = mean([scores_of(member) for member in members])
    kept = [np.where(m >= np.sort(m, 1)[:, -min(KEEP, classes), None], m, 0) for m in members]
    expected = np.mean(kept, axis=0)
    assert together.probs == pytest.approx(-np.sort(-expected, 1)[:, :KEEP], abs=1e-6)
    assert np.take_along_axis(expected, together.top, 1) == pytest.approx(together.probs, abs=1e-6)
    assert together.p_label == pytest.approx(np.mean([scores_of(m).p_label for m in members], axis=0), abs=1e-6)


def test_the_mean_of_one_is_itself() -> None:
    scores = scores_of(dense(9, 30, 0))
    assert_same(mean([scores]), scores)


def test_members_must_have_scored_the_same_photos() -> None:
    with pytest.raises(ValueError, match="scored different photos"):
        mean([scores_of(dense(3, 4, 0)), scores_of(dense(3, 4, 0), first=1)])


def test_parts_are_joined_by_id() -> None:
    probs = dense(6, 12, 0)
    whole = scores_of(probs)
    order = np.array([4, 1, 5, 0, 3, 2])
    assert_same(concatenate([whole.select(order[:2]), whole.select(order[2:])]), whole)


def test_the_best_other_class() -> None:
    probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    scores = Scores(np.array(["a", "b"]), np.array([0, -1]), probs[:, 0], np.argsort(-probs, 1), -np.sort(-probs, 1))
    assert scores.best_other() == pytest.approx([0.3, 0.7])
    assert scores_of(np.ones((1, 1), np.float32)).best_other() == pytest.approx([0]), "there is no other"


def test_thirds_go_by_training_photos() -> None:
    assert thirds(np.array([1, 50, 7, 50, 9, 2])).tolist() == [2, 0, 1, 0, 1, 2]
    assert thirds(np.array([5, 5])).tolist() == [1, 2]
    assert thirds(np.array([3])).tolist() == [2]


def test_accuracy_by_class_and_by_third() -> None:
    ranked = np.array([[0, 1], [0, 1], [1, 0], [1, 2], [2, 1], [0, 2]])
    target = np.array([0, 0, 0, 1, 1, 2])
    found = accuracy(ranked, target, train_counts=np.array([9, 5, 1]))
    assert found.top1 == pytest.approx(3 / 6)
    assert found.top5 == pytest.approx(6 / 6)
    assert (found.head, found.middle, found.tail) == (pytest.approx(2 / 3), 0.5, 0.0)
    assert found.mean_class == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_absent_and_unknown_classes() -> None:
    ranked = np.array([[0, 1, -1], [2, 0, -1], [1, 0, -2]])
    found = accuracy(ranked, np.array([0, 0, -1]), train_counts=np.array([9, 5, 1]))
    assert found.top1 == pytest.approx(1 / 3), "a photo of an unknown class counts, and is wrong"
    assert found.mean_class == found.head == 0.5
    assert np.isnan([found.middle, found.tail]).all(), "no photo of theirs was asked"


def test_no_photos_at_all() -> None:
    found = accuracy(np.empty((0, 5), np.int64), np.empty(0, np.int64), train_counts=np.array([2, 1]))
    assert set(found.to_dict().values()) == {None}
