"""Benchmarks of a review budget and of unknown products by encoder: they run, and their measures are correct."""

from __future__ import annotations

import json

import numpy as np
import pytest
import review_budget
import torch
import unknown
import unknown_encoders
from struck import scores
from tail.sets import drawn_set

from models.export.struck import Shown
from models.networks.network import Head


def figures(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"figure"')]


def test_a_look_gives_a_photo_its_true_label() -> None:
    given, true = np.array([0, 1, 1, 2]), np.array([0, 2, 1, 2])
    label, kept = review_budget.looked_at(given, true, np.array([False, True, True, False]), np.array([1]))
    assert (label.tolist(), kept.tolist()) == ([0, 2, 1, 2], [True, True, False, True])


def test_true_labels_are_learnt_better_than_wrong_ones() -> None:
    photos = drawn_set(num_classes=10, imbalance=4, largest=30, noise=0.4)
    assert photos.true is not None
    rows = photos.rows("train")
    every = np.ones(len(rows), bool)
    right, wrong = (review_budget.accuracy(photos, each[rows], every) for each in (photos.true, photos.target))
    assert right > wrong + 0.05


def test_the_curves_start_at_the_same_accuracy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = drawn_set(num_classes=8, imbalance=4, largest=25, noise=0.3)
    monkeypatch.setattr(review_budget, "drawn_set", lambda *, noise: small)
    review_budget.main(["--seeds", "0"])
    out = capsys.readouterr().out
    rows = [line.split("|")[2].strip() for line in out.splitlines() if line.startswith(("| worth", "| worst", "| at"))]
    assert len(rows) == 3
    assert len(set(rows)) == 1
    assert len(figures(out)) == 1


def test_two_encoders_are_asked_alone_and_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, draw = drawn_set(num_classes=12, imbalance=2, largest=20, noise=0.0), torch.Generator().manual_seed(0)
    other, tiles = (2 * torch.randn(2, 120, 24, generator=draw) for _ in range(2))
    stall = unknown.Stall(photos, other, tiles)
    monkeypatch.setattr(unknown_encoders, "read_stalls", lambda args: {"one": stall, "two": stall})
    assert unknown_encoders.main(["--data", ".", "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    cells = {(row[1].strip(), row[2].strip()): row[3:6] for line in out.splitlines() if (row := line.split("|"))[1:]}
    for score in ("probability", "discriminant"):
        assert cells["one", score] == cells["two", score] == cells["all", score], (
            "the same encoder twice is one encoder"
        )
    assert len(figures(out)) == 3
    assert all(("all", score) in cells for score in (*scores.MORE, unknown_encoders.CHOSEN, unknown_encoders.ANY))


def test_the_guided_and_the_scaled_score_are_their_formulas() -> None:
    draw = torch.Generator().manual_seed(0)
    features, target = torch.rand(40, 6, generator=draw), np.arange(40) % 4
    torch.manual_seed(0)
    head = Head(6, num_classes=4).eval()
    found = scores.Guide([head], Shown([features], target), torch.ones(1, 1, 1), [0.5]).scores([features])
    with torch.inference_mode():
        logits, embedding = (each.double().numpy() for each in head(features))
    energy = np.log(np.exp(logits / 0.5).sum(1))
    away = embedding - embedding.mean(0)
    for row in range(0, 40, 9):
        guides = []
        for label in range(4):
            mean = away[target == label].sum(0)
            cosine = away[row] @ mean / np.linalg.norm(away[row]) / np.linalg.norm(mean)
            guides.append(cosine * energy[target == label].mean())
        photo = features[row].double().numpy()
        r = photo.sum() / photo[photo >= np.quantile(photo, 0.85)].sum()
        scaled = np.log(np.exp(logits[row] / 0.5 * np.exp(r)).sum())
        assert found[row] == pytest.approx([energy[row] * max(guides), scaled], rel=1e-4)


def test_a_sum_is_in_standard_deviations_of_known_photos() -> None:
    known = np.random.default_rng(0).normal(3, 2, (200, len(scores.EVERY)))
    some = scores.with_sums(known[:5], known)
    column = scores.NAMES.index("angle + scale")
    terms = [
        (known[:5, i] - known[:, i].mean()) / known[:, i].std() for i in map(scores.EVERY.index, ("angle", "scale"))
    ]
    assert some[:, column] == pytest.approx(terms[0] + terms[1])
    assert np.array_equal(some[:, : len(scores.EVERY)], known[:5])


def test_the_best_score_is_chosen_by_struck_classes_and_tiles() -> None:
    draw = np.random.default_rng(0)
    known, struck, tiles = (draw.standard_normal((100, len(scores.NAMES))) for _ in range(3))
    struck[:, 4] -= 1
    tiles[:, 4] -= 1
    struck[:, 7] -= 1.5
    assert unknown_encoders.best_of([(known, struck)], known, tiles) == scores.NAMES[4]
