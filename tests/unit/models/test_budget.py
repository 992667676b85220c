"""The order of a review under a budget, against a slow greedy choice, and on bad input."""

from __future__ import annotations

import numpy as np
import pytest

from models.cleaning.budget import FEW, worth_looking_at
from models.errors import CleaningError


def drawn(seed: int, *, size: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.minimum(draw.geometric(0.3, size) - 1, 7)
    return labels, draw.random(size), (labels + draw.integers(1, 8, size)) % 8


def slow(labels: np.ndarray, quality: np.ndarray, suggested: np.ndarray, count: int) -> list[int]:
    having = [
        FEW + sum(q for label, q in zip(labels, quality, strict=True) if label == c and q >= 0.5) for c in range(8)
    ]
    taken: list[int] = []
    while len(taken) < count:
        values = {}
        for row in set(range(len(labels))) - set(taken):
            q, y, s = quality[row], labels[row], suggested[row]
            values[row] = q * (1 - q) * (1 / having[s] + 1 / having[y])
        best = max(values, key=lambda row: (values[row], -row))
        taken.append(best)
        q, y, s = quality[best], labels[best], suggested[best]
        having[s] += 1 - q
        having[y] += q if q < 0.5 else 0
    return taken


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_greedy_choice(seed: int) -> None:
    labels, quality, suggested = drawn(seed)
    assert worth_looking_at(labels, quality, suggested, count=40).tolist() == slow(labels, quality, suggested, 40)


def test_the_tail_comes_before_the_head_and_doubt_before_certainty() -> None:
    labels = np.repeat([0, 1, 2], [50, 4, 60])
    quality, suggested = np.full(114, 0.95), np.where(labels == 0, 2, 0)
    quality[[0, 50, 60]] = 0.5  # equal doubt in the head, in the tail, in the head
    quality[[10, 51]] = 0.01  # certainly wrong
    assert worth_looking_at(labels, quality, suggested, count=3)[0] == 50
    assert not {10, 51} & set(worth_looking_at(labels, quality, suggested, count=3))


def test_a_class_does_not_take_the_whole_budget() -> None:
    labels = np.repeat([0, 1, 2], [40, 3, 3])
    suggested = np.array([1] * 20 + [2] * 20 + [0] * 6)
    quality = np.where(labels == 0, 0.45, 0.95)
    quality[:20] = 0.46  # slightly more in doubt throughout
    first = worth_looking_at(labels, quality, suggested, count=10)
    assert set(suggested[first]) == {1, 2}


def test_photos_without_a_label_a_score_or_a_suggestion_are_allowed() -> None:
    labels, quality, suggested = np.array([-1, 0, 0, 1]), np.array([np.nan, np.nan, 0.2, 0.7]), np.array([1, -1, -1, 0])
    assert sorted(worth_looking_at(labels, quality, suggested, count=9)) == [0, 1, 2, 3]
    assert worth_looking_at(labels[:0], quality[:0], suggested[:0], count=5).size == 0
    assert worth_looking_at(labels, quality, suggested, count=0).size == 0


@pytest.mark.parametrize(("quality", "count"), [([2.0, 0.5], 1), ([0.5], 1), ([0.5, 0.5], -1)])
def test_wrong_input_is_refused(quality: list[float], count: int) -> None:
    with pytest.raises(CleaningError, match="quality"):
        worth_looking_at(np.array([0, 1]), np.array(quality), np.array([1, 0]), count=count)
