"""Refusals that name the argument, warnings about probable mistakes, out-of-distribution photos and near-duplicates."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from models.cleaning import (
    RULES,
    TopK,
    find_label_errors,
    find_near_duplicates,
    find_out_of_set,
    label_quality,
    label_weights,
    suggest_labels,
)
from models.errors import CleaningError, ConfigError
from tests.unit.models.clusters import as_top_k, clusters

GOOD = clusters(20, num_classes=4)


def spoilt(**changes: object) -> dict[str, object]:
    return {"labels": GOOD[0], "pred_probs": GOOD[2], "embeddings": GOOD[3]} | changes


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[3, 1] = value
    return changed


REFUSED = {
    "logits": (spoilt(pred_probs=np.log(GOOD[2])), "pred_probs: row 0 sums to"),
    "NaN": (spoilt(pred_probs=with_value(GOOD[2], np.nan)), "row 3 sums to nan"),
    "negative": (spoilt(pred_probs=GOOD[2] + np.array([-2, 2, 0, 0], np.float32)), "pred_probs: row 0"),
    "another N": (spoilt(pred_probs=GOOD[2][:-1]), "19 rows for 20 labels"),
    "too large": (spoilt(labels=GOOD[0] + 1), r"labels: outside \[-1, 4\)"),
    "no integers": (spoilt(labels=GOOD[0] / 2), "expected .N,. integers"),
    "flat": (spoilt(pred_probs=GOOD[2][:, 0]), "expected .N, C. floats"),
    "other photos": (spoilt(embeddings=GOOD[3][:4]), "embeddings: shape"),
    "broken photo": (spoilt(embeddings=with_value(GOOD[3], np.inf)), "embeddings: NaN or infinity, first in row 3"),
    "groups": (spoilt(groups=np.zeros(3)), "groups: shape"),
    "budget": (spoilt(budget=1.5), r"budget: 1.5 is outside \[0, 1\]"),
    "floor": (spoilt(floor_share=-0.1), "floor_share"),
    "no floor": (spoilt(floor_count=0), "floor_count"),
    "sparse sum": (spoilt(pred_probs=TopK(np.zeros((20, 1), int), np.full((20, 1), 2.0), np.ones(20), 4)), "sum above 1"),
    "sparse ids": (spoilt(pred_probs=TopK(np.full((20, 1), 4), np.ones((20, 1)), np.ones(20), 4)), "pred_probs.ids"),
    "sparse label": (spoilt(pred_probs=TopK(np.zeros((20, 1), int), np.ones((20, 1)), np.full(20, np.nan), 4)), "p_label"),
    "sparse shapes": (spoilt(pred_probs=TopK(np.zeros((20, 2), int), np.ones((20, 1)), np.ones(20), 4)), "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(CleaningError, match=message):
        find_label_errors(**arguments)  # type: ignore[arg-type]


def test_other_refusals() -> None:
    y, _, p, x = GOOD
    with pytest.raises(CleaningError, match="this rule compares photos"):
        label_quality(y, p, rule="linear")
    with pytest.raises(ConfigError, match="did you mean 'log_margin'"):
        label_quality(y, p, rule="log_margins")
    with pytest.raises(ConfigError, match="no such parameter"):
        label_quality(y, p, rule="log_margin", margin=1.0)
    with pytest.raises(CleaningError, match="confidence"):
        suggest_labels(y, p, x, confidence=2)
    with pytest.raises(CleaningError, match="cosine"):
        find_near_duplicates(x, cosine=1.0)
    with pytest.raises(CleaningError, match="deviations"):
        find_out_of_set(p, deviations=0)
    with pytest.raises(CleaningError, match="quality: NaN"):
        label_weights(y, np.full(20, np.nan))


def test_in_sample_probabilities_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    y, _, p, x = clusters()
    label_quality(y, p, x)
    assert not caplog.records
    memorised = np.full_like(p, 1e-4)
    memorised[np.arange(len(y)), y] = 1 - 7e-4
    with caplog.at_level(logging.WARNING):
        label_quality(y, memorised, x)
    assert "in sample" in caplog.text


def test_columns_in_another_order_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    y, _, p, x = clusters()
    with caplog.at_level(logging.WARNING):
        wrong = find_label_errors((y + 1) % 8, p, x, rule="log_margin")
    assert "order of the classes" in caplog.text
    assert wrong.mean() < 0.71, "the floors hold even if every label is wrong"


def test_one_class_and_no_photos_are_never_wrong() -> None:
    one = label_quality(np.zeros(5, np.int64), np.ones((5, 1), np.float32), np.eye(5, dtype=np.float32))
    assert one.tolist() == [1] * 5
    for rule in RULES.components:
        none = find_label_errors(np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros((0, 2)), rule=rule)
        assert none.shape == (0,)
        unknown = label_quality(np.full(4, -1), np.full((4, 2), 0.5), np.zeros((4, 2)), rule=rule)
        assert unknown.tolist() == [1] * 4


def test_photos_without_a_probable_class_are_out_of_distribution() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(500, 20))
    logits[np.arange(480), draw.integers(0, 20, 480)] += draw.normal(6, 0.7, 480)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = find_out_of_set(probs)
    assert found[480:].mean() > 0.9
    assert found[:480].mean() < 0.06
    sparse = as_top_k(np.zeros(500, np.int64), probs, 10)
    assert (find_out_of_set(sparse) == found).all()


@pytest.mark.parametrize("block", [1 << 26, 3000])
def test_near_duplicates_are_found_exactly(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cleaning.votes.BLOCK_BYTES", block)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 16)).astype(np.float32)
    x[150:] = x[:50] * draw.uniform(0.1, 9, (50, 1)) + 0.05 * draw.normal(size=(50, 16))
    x[199] = 0
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    slow = [(i, j) for i in range(200) for j in range(i + 1, 200) if unit[i] @ unit[j] >= 0.95]
    pairs, cosines = find_near_duplicates(x, cosine=0.95)
    assert [tuple(pair) for pair in pairs.tolist()] == slow
    assert len(slow) > 30
    assert cosines == pytest.approx([float(unit[i] @ unit[j]) for i, j in slow], abs=1e-5)
    assert len(find_near_duplicates(x[:0])[0]) == 0
