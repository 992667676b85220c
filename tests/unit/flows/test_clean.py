"""From out-of-sample probabilities to decisions: nothing is removed, and every judged photo keeps its score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flows.clean import decide, looks, out_of_sample, uncleaned
from flows.data_version import Entry
from models.config import Clean
from models.data.manifest import Manifest
from models.scores import Scores


def manifest(labels: list[str], split: list[str]) -> Manifest:
    """Photos p0, p1, ... with these labels and splits, all kept, none judged."""
    n = len(labels)
    texts = {"given_label": labels, "label": labels, "split": split, "decision": [""] * n, "shard": ["s"] * n}
    return Manifest(
        data=Path("data"),
        id=np.array([f"p{i}" for i in range(n)], object),
        **{name: np.array(values, object) for name, values in texts.items()},
        kept=np.ones(n, np.bool_),
        score=np.full(n, np.nan, np.float32),
        round=np.zeros(n, np.int8),
        offset=np.zeros(n, np.int64),
        size=np.ones(n, np.int32),
    )


def scores(rows: dict[str, tuple[int, float]], *, num_classes: int = 2) -> Scores:
    """id -> (class of its label, probability of that); the rest goes to the next class."""
    target = np.array([label for label, _ in rows.values()])
    p = np.array([p for _, p in rows.values()], np.float32)
    dense = np.zeros((len(rows), num_classes), np.float32)
    dense[np.arange(len(rows)), (target + 1) % num_classes] = 1 - p
    known = target >= 0
    dense[np.flatnonzero(known), target[known]] = p[known]
    top = np.argsort(-dense, axis=1, kind="stable")
    return Scores(np.array(list(rows)), target, p, top, np.take_along_axis(dense, top, 1))


def test_folds_give_their_own_photos_and_the_mean_of_the_validation_photos() -> None:
    photos = manifest(["a", "b", "a", "b"], ["train", "train", "train", "val"])
    folds = [scores({"p0": (0, 0.9), "p2": (0, 0.2), "p3": (1, 0.25)}), scores({"p1": (1, 0.6), "p3": (1, 0.75)})]
    found = out_of_sample(folds, photos)
    assert found.id.tolist() == ["p0", "p1", "p2", "p3"]
    assert found.p_label.tolist() == pytest.approx([0.9, 0.6, 0.2, 0.5])
    assert found.target.tolist() == [0, 1, 0, 1]


def test_no_validation_photos_are_needed() -> None:
    photos = manifest(["a", "b"], ["train", "train"])
    assert out_of_sample([scores({"p1": (1, 0.6)}), scores({"p0": (0, 0.9)})], photos).id.tolist() == ["p0", "p1"]


def test_a_validation_photo_of_a_class_without_training_photos_is_not_judged() -> None:
    photos = manifest(["a", "b", "z", "a"], ["train", "train", "val", "val"])
    unknown = {"p2": (-1, 0.0), "p3": (0, 0.1)}
    found = out_of_sample([scores({"p0": (0, 0.9)} | unknown), scores({"p1": (1, 0.9)} | unknown)], photos)
    assert found.id.tolist() == ["p0", "p1", "p3"]
    decided = decide(photos, found, settings=Clean(floor_count=1), round=1)
    assert decided.decision.tolist() == ["", "", "", "dropped"]


def test_suspects_are_dropped_and_nothing_is_removed() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["test"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.45), "p3": (0, 0.8), "p4": (1, 0.5)})
    decided = decide(photos, judged, settings=Clean(margin=-0.5, floor_count=1), round=2)
    assert decided.id.tolist() == photos.id.tolist()
    assert decided.decision.tolist() == ["", "dropped", "", "", "", ""]
    assert decided.kept.tolist() == [True, False, True, True, True, True]
    assert decided.label.tolist() == decided.given_label.tolist() == photos.label.tolist()
    assert decided.score[:5].tolist() == pytest.approx(np.log([9, 1 / 9, 0.45 / 0.55, 4, 1]).tolist(), rel=1e-5)
    assert np.isnan(decided.score[5]), "test photos are never judged"
    assert decided.round.tolist() == [2, 2, 2, 2, 2, 0]


def test_a_class_keeps_its_floor_and_loses_the_worst() -> None:
    photos = manifest(["a"] * 4, ["train"] * 4)
    judged = scores({"p0": (0, 0.1), "p1": (0, 0.3), "p2": (0, 0.2), "p3": (0, 0.05)})
    decided = decide(photos, judged, settings=Clean(floor_share=0.5, floor_count=1), round=1)
    assert decided.kept.tolist() == [False, True, True, False]
    untouched = decide(photos, judged, settings=Clean(floor_count=4), round=1)
    assert untouched.kept.all()


def test_earlier_decisions_stay_as_they_are() -> None:
    before = manifest(["a", "a", "b"], ["train"] * 3)
    before = dataclasses.replace(before, kept=np.array([True, False, True]), decision=np.array(["", "dropped", ""], object),
                                 score=np.array([1, -2, 1], np.float32), round=np.ones(3, np.int8))  # fmt: skip
    after = decide(before, scores({"p0": (0, 0.9), "p2": (1, 0.9)}), settings=Clean(), round=2)
    assert (after.kept.tolist(), after.decision.tolist()) == (before.kept.tolist(), before.decision.tolist())
    assert (after.score[1], after.round.tolist()) == (-2, [2, 1, 2])
    assert before.round.tolist() == [1, 1, 1], "the manifest given is not changed"


def test_other_rules_speak_in_qualities_and_keep_to_the_budget() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["val"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.2), "p3": (0, 0.8), "p4": (1, 0.5), "p5": (1, 0.3)})
    decided = decide(photos, judged, settings=Clean(rule="report", floor_count=1, budget=0.2), round=1)
    assert decided.score.tolist() == pytest.approx([1, 0.9 / 1.4, 0.8 / 1.4, 1, 1, 0.5])
    decided = decide(photos, judged, settings=Clean(rule="self_confidence", floor_count=1, budget=0.2), round=1)
    assert decided.kept.tolist() == [True, False, True, True, True, True], "one of five, the worst"
    unlimited = decide(photos, judged, settings=Clean(rule="self_confidence", floor_count=1), round=1)
    assert unlimited.kept.tolist() == [True, False, False, True, True, True]


def test_photos_are_compared_within_their_fold() -> None:
    draw = np.random.default_rng(0)
    n, truth = 120, np.arange(120) % 2
    given = np.where(draw.random(n) < 0.15, 1 - truth, truth)
    photos = manifest([*np.array(["a", "b"])[given]], ["train"] * (n - 20) + ["val"] * 20)
    photos = dataclasses.replace(photos, id=np.array([f"p{i:03}" for i in range(n)], object))
    fold = np.arange(n) % 2
    parts = [
        scores({f"p{i:03}": (int(given[i]), 0.5) for i in range(n) if fold[i] == f or i >= n - 20}) for f in (0, 1)
    ]
    seen = [np.array([[(-1.0) ** (truth[int(name[1:])] + number), draw.normal() / 9] for name in part.id], np.float16)
            for number, part in enumerate(parts)]  # fmt: skip
    judged = out_of_sample(parts, photos)
    found = looks(seen, parts, judged)
    assert found.fold.tolist() == [*fold[: n - 20], *[0] * 20], "validation photos are the first fold's"
    decided = decide(photos, judged, settings=Clean(rule="posterior"), round=1, looks=found)
    assert np.array_equal(decided.kept, given == truth), "each fold's own axis tells; mixed up they would cancel"


def test_labels_are_judged_from_before_the_cleaning() -> None:
    def entry(version: str, parent: str | None, step: str) -> Entry:
        return Entry(0, version, parent, step, "", "", {}, False)

    history = [
        entry("sample", None, "adopt"),
        entry("delivered", "sample", "ingest"),
        entry("once", "delivered", "clean-1"),
        entry("twice", "once", "clean-2"),
        entry("delivered", "sample", "rollback"),
        entry("once", "delivered", "rollback"),
        entry("more", "twice", "ingest"),
    ]
    assert uncleaned("twice", history) == uncleaned("once", history) == "delivered"
    assert uncleaned("more", history) == "more", "a delivery on top keeps the decisions of before"
    assert uncleaned("sample", history) == "sample"
