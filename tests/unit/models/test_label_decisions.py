"""Decisions from out-of-sample probabilities: no photo is removed, and every scored photo has its score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cleaning import TopK, estimate_noise, label_quality
from models.cleaning.evidence import gather_evidence
from models.cleaning.mixture import Evidence
from models.cleaning.rule_input import RuleInput
from models.data.manifest import Manifest
from models.decisions import (
    FoldEmbeddings,
    as_delivered,
    assess,
    changed_labels,
    confusion,
    decide,
    fold_embeddings,
    out_of_sample,
    scored_by,
)
from models.evaluation.scores import Scores
from models.recipe.config import Clean
from tests.unit.models.clusters import NAMES, named_clusters

POSTERIOR = Clean(rule="posterior")


def manifest(labels: list[str], split: list[str]) -> Manifest:
    """Photos p0, p1, ... with these labels and splits, all kept, none scored."""
    n = len(labels)
    texts = {"given_label": labels, "label": labels, "split": split, "decision": [""] * n, "shard": ["s"] * n}
    return Manifest(
        data=Path("data"),
        id=np.array([f"p{i}" for i in range(n)], object),
        **{name: np.array(values, object) for name, values in texts.items()},
        kept=np.ones(n, np.bool_),
        score=np.full(n, np.nan, np.float32),
        round=np.zeros(n, np.int8),
        scored_by=np.full(n, "", object),
        offset=np.zeros(n, np.int64),
        size=np.ones(n, np.int32),
    )


def scores(rows: dict[str, tuple[int, float]], *, num_classes: int = 2) -> Scores:
    """id -> (class of its label, probability of that); the remaining probability goes to the next class."""
    target = np.array([label for label, _ in rows.values()])
    p = np.array([p for _, p in rows.values()], np.float32)
    dense = np.zeros((len(rows), num_classes), np.float32)
    dense[np.arange(len(rows)), (target + 1) % num_classes] = 1 - p
    known = target >= 0
    dense[np.flatnonzero(known), target[known]] = p[known]
    top = np.argsort(-dense, axis=1, kind="stable")
    return Scores(np.array(list(rows)), target, p, top, np.take_along_axis(dense, top, 1))


def decided_on(
    photos: Manifest, judged: Scores, *, round: int = 1, fold_embeddings: FoldEmbeddings | None = None, **keys: Any
) -> Manifest:
    """The decisions with these keys of [clean]; the rule is log_margin unless `keys` names another."""
    settings = Clean(**{"rule": "log_margin"} | keys)
    if settings.relabel and fold_embeddings is None:
        fold_embeddings = FoldEmbeddings(np.eye(len(judged), dtype=np.float32), np.zeros(len(judged), np.int64))
    judge = np.full(len(judged), "fold", object)
    assessment = assess(photos, judged, settings=settings, fold_embeddings=fold_embeddings)
    return decide(photos, judged, assessment, settings=settings, round=round, scored_by=judge)


def test_folds_give_scores_of_their_own_photos_and_the_mean_of_the_validation_photos() -> None:
    photos = manifest(["a", "b", "a", "b"], ["train", "train", "train", "val"])
    folds = [scores({"p0": (0, 0.9), "p2": (0, 0.2), "p3": (1, 0.25)}), scores({"p1": (1, 0.6), "p3": (1, 0.75)})]
    found = out_of_sample(folds, photos)
    assert found.id.tolist() == ["p0", "p1", "p2", "p3"]
    assert found.p_label.tolist() == pytest.approx([0.9, 0.6, 0.2, 0.5])
    assert found.target.tolist() == [0, 1, 0, 1]


def test_no_validation_photos_are_needed() -> None:
    photos = manifest(["a", "b"], ["train", "train"])
    assert out_of_sample([scores({"p1": (1, 0.6)}), scores({"p0": (0, 0.9)})], photos).id.tolist() == ["p0", "p1"]


def test_a_validation_photo_of_a_class_without_training_photos_is_not_scored() -> None:
    photos = manifest(["a", "b", "z", "a"], ["train", "train", "val", "val"])
    unknown = {"p2": (-1, 0.0), "p3": (0, 0.1)}
    found = out_of_sample([scores({"p0": (0, 0.9)} | unknown), scores({"p1": (1, 0.9)} | unknown)], photos)
    assert found.id.tolist() == ["p0", "p1", "p3"]
    decided = decided_on(photos, found, floor_count=1)
    assert np.isnan(decided.score).tolist() == [False, False, True, False]


def test_flagged_photos_are_dropped_and_none_is_removed() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["test"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.45), "p3": (0, 0.8), "p4": (1, 0.5)})
    decided = decided_on(photos, judged, floor_count=1, round=2)
    assert decided.id.tolist() == photos.id.tolist()
    assert decided.decision.tolist() == ["", "dropped", "", "", "", ""]
    assert decided.kept.tolist() == [True, False, True, True, True, True]
    assert decided.label.tolist() == decided.given_label.tolist() == photos.label.tolist()
    odds = np.array([9, 1 / 9, 0.45 / 0.55, 4, 1]) * np.exp(0.5)
    assert decided.score[:5].tolist() == pytest.approx((odds / (1 + odds)).tolist(), rel=1e-5)
    assert np.isnan(decided.score[5]), "test photos are never scored"
    assert decided.round.tolist() == [2, 2, 2, 2, 2, 0]
    assert decided.scored_by.tolist() == ["fold"] * 5 + [""]
    assert photos.round.tolist() == [0] * 6, "the manifest given is not changed"


def test_a_class_keeps_its_floor_and_loses_the_worst() -> None:
    photos = manifest(["a"] * 4 + ["b"], ["train"] * 5)
    judged = scores({"p0": (0, 0.1), "p1": (0, 0.3), "p2": (0, 0.2), "p3": (0, 0.05)})
    assert decided_on(photos, judged, floor_share=0.5, floor_count=1).kept.tolist() == [False, True, True, False, True]
    assert decided_on(photos, judged, floor_count=4).kept.all()


def test_decisions_are_taken_back_where_the_next_round_believes_the_label() -> None:
    photos = manifest(["a", "a", "b", "b"], ["train"] * 3 + ["val"])
    first = decided_on(photos, scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (1, 0.9), "p3": (1, 0.1)}), floor_count=1,
                       validation=True)  # fmt: skip
    assert first.decision.tolist() == ["", "dropped", "", "dropped"]
    again = scores({"p0": (0, 0.1), "p1": (0, 0.8), "p2": (1, 0.9), "p3": (1, 0.9)})
    second = decided_on(first, again, floor_count=1, round=2, validation=True)
    assert second.decision.tolist() == ["dropped", "", "", ""]
    assert second.kept.tolist() == [False, True, True, True]
    assert changed_labels(photos, first) == (2, 0, 0.5)
    assert changed_labels(first, second) == (1, 2, 0.75)


def test_cleaning_leaves_conflicts_alone() -> None:
    photos = manifest(["a", "a", "b"], ["train"] * 3)
    photos = dataclasses.replace(
        photos, kept=np.array([True, True, False]), decision=np.array(["", "", "conflict"], object)
    )
    decided = decided_on(photos, scores({"p0": (0, 0.9), "p1": (0, 0.1)}), floor_count=1)
    assert decided.decision.tolist() == ["", "dropped", "conflict"]
    assert decided.round.tolist() == [1, 1, 0]


def test_every_rule_gives_qualities_and_keeps_to_the_budget() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["val"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.2), "p3": (0, 0.8), "p4": (1, 0.5), "p5": (1, 0.3)})
    decided = decided_on(photos, judged, rule="report", floor_count=1, budget=0.2)
    assert decided.score.tolist() == pytest.approx([1, 0.9 / 1.4, 0.8 / 1.4, 1, 1, 0.5])
    decided = decided_on(photos, judged, rule="self_confidence", floor_count=1, budget=0.2)
    assert decided.kept.tolist() == [True, False, True, True, True, True], "one of five, the worst"
    unlimited = decided_on(photos, judged, rule="self_confidence", floor_count=1)
    assert unlimited.kept.tolist() == [True, False, False, True, True, True]
    spared = decided_on(photos, judged, rule="self_confidence", params={"share": 0.1}, floor_count=1)
    assert spared.kept.all()


def test_validation_photos_are_scored_and_left_alone_unless_the_recipe_asks_for_them() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["val"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.9), "p3": (0, 0.8), "p4": (1, 0.5), "p5": (1, 0.1)})
    for keys in ({}, {"use": "weigh"}, {"relabel": 0.6}):
        decided = decided_on(photos, judged, floor_count=1, **keys)
        assert (decided.label[5], decided.kept[5], decided.decision[5]) == ("b", True, "")
        assert decided.score[5] < 0.5, "its doubt is on record"
    assert not decided_on(photos, judged, floor_count=1, validation=True).kept[5]


def test_labels_as_delivered_have_neither_scores_nor_decisions_except_those_of_people() -> None:
    photos = manifest(["a", "a", "a", "b", "b", "b"], ["train"] * 5 + ["val"])
    photos.decision[:] = ["dropped", "doubted", "relabelled", "checked", "conflict", "dropped"]
    photos.label[:] = ["a", "a", "b", "a", "b", "b"]
    photos.scored_by[:] = ["fold-0", "fold-1", "fold-0", "person", "fold-0", "fold-0 fold-1"]
    photos.kept[:] = [False, True, True, True, False, False]
    photos.score[:], photos.round[:] = 0.3, 2
    before = as_delivered(photos)
    assert before.label.tolist() == ["a", "a", "a", "a", "b", "b"], "the correction of a person stays"
    assert before.decision.tolist() == ["", "", "", "checked", "conflict", ""]
    assert before.kept.tolist() == [True, True, True, True, False, True]
    assert before.scored_by.tolist() == ["", "", "", "person", "", ""]
    assert np.isnan(before.score).tolist() == [True] * 3 + [False] + [True] * 2
    assert before.round.tolist() == [0, 0, 0, 2, 0, 0]


def test_if_labels_are_weighed_only_validation_photos_are_dropped() -> None:
    photos = manifest(["a"] * 4 + ["b"] * 2, ["train"] * 5 + ["val"])
    judged = scores({"p0": (0, 0.9), "p1": (0, 0.1), "p2": (0, 0.9), "p3": (0, 0.8), "p4": (1, 0.5), "p5": (1, 0.1)})
    decided = decided_on(photos, judged, use="weigh", floor_count=1, validation=True)
    assert decided.decision.tolist() == ["", "doubted", "", "", "", "dropped"]
    assert decided.kept.tolist() == [True] * 5 + [False]
    assert decided.score.tolist() == decided_on(photos, judged, floor_count=1).score.tolist()


def planted(*, num_classes: int = 4, seed: int = 0) -> tuple[Manifest, Scores, FoldEmbeddings, np.ndarray]:
    """Train photos of classes far apart, a tenth of the labels swapped; and the true labels."""
    draw = np.random.default_rng(seed)
    truth = np.repeat(np.arange(num_classes), [12 if c == num_classes - 1 else 40 for c in range(num_classes)])
    given = np.where(draw.random(len(truth)) < 0.1, (truth + 1) % num_classes, truth)
    names = np.array(list("abcdefgh"))
    photos = manifest([*names[given]], ["train"] * len(truth))
    photos = dataclasses.replace(photos, id=np.array([f"p{i:03}" for i in range(len(truth))], object))
    dense = np.full((len(truth), num_classes), 0.2 / (num_classes - 1), np.float32)
    dense[np.arange(len(truth)), truth] = 0.8
    top = np.argsort(-dense, axis=1, kind="stable")
    judged = Scores(
        photos.id.astype(str), given, dense[np.arange(len(truth)), given], top, np.take_along_axis(dense, top, 1)
    )
    embeddings = np.eye(num_classes)[truth] + 0.1 * draw.normal(size=(len(truth), num_classes))
    return photos, judged, FoldEmbeddings(embeddings.astype(np.float32), np.zeros(len(truth), np.int64)), names[truth]


def test_certain_labels_are_replaced_except_by_the_attractor_of_a_rare_class() -> None:
    photos, judged, seen, truth = planted()
    decided = decided_on(photos, judged, rule="posterior", relabel=0.9, floor_count=1, fold_embeddings=seen)
    changed = decided.decision == "relabelled"
    assert changed.sum() > 3
    assert (decided.label[changed] == truth[changed]).all()
    assert decided.given_label.tolist() == photos.given_label.tolist(), "given labels stay"
    assert decided.kept[changed].all()
    rare = "d"  # its label is borne by photos of c most often, so nothing becomes a c
    assert ((truth == "c") & (photos.label == rare)).any()
    assert (decided.decision[(truth == "c") & (photos.label == rare)] == "dropped").all()
    assert not (decided.label[changed] == "c").any()
    never = decided_on(photos, judged, rule="posterior", floor_count=1, fold_embeddings=seen)
    assert set(never.decision) == {"", "dropped"}
    assert np.array_equal(never.decision == "dropped", decided.decision != ""), "the same labels are flagged"


def test_a_relabelled_photo_gets_its_label_back() -> None:
    photos, judged, seen, _ = planted()
    once = decided_on(photos, judged, rule="posterior", relabel=0.9, floor_count=1, fold_embeddings=seen)
    sure = dataclasses.replace(judged, p_label=np.ones(len(judged), np.float32), top=judged.target[:, None],
                               probs=np.ones((len(judged), 1), np.float32))  # fmt: skip
    back = decided_on(once, sure, relabel=0.9, floor_count=1, fold_embeddings=seen, round=2)
    assert back.label.tolist() == photos.label.tolist()
    assert set(back.decision) == {""}


labelled = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["train", "train", "val", "test"]), st.floats(0, 1)),
                    min_size=1, max_size=50)  # fmt: skip


@given(rows=labelled, later=st.randoms(use_true_random=False), share=st.floats(0, 1), count=st.integers(1, 6),
       budget=st.floats(0, 1), use=st.sampled_from(["drop", "weigh"]), relabel=st.sampled_from([0.0, 0.6]))  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_floors_and_budget_hold_in_every_round_and_only_the_last_one_matters(
    rows: list[tuple[int, str, float]], later: Random, share: float, count: int, budget: float, use: str, relabel: float
) -> None:
    photos = manifest(["abcd"[label] for label, *_ in rows], [split for _, split, _ in rows])
    photos = dataclasses.replace(photos, id=np.array([f"p{i:03}" for i in range(len(rows))], object))
    judged = [(f"p{i:03}", target) for i, (split, target) in enumerate(zip(photos.split, photos.target, strict=True))
              if split != "test" and target >= 0]  # fmt: skip
    if not judged:
        return
    num_classes = len(photos.classes)
    keys = {"floor_share": share, "floor_count": count, "budget": budget, "use": use, "relabel": relabel}
    first = {name: (target, rows[int(name[1:])][2]) for name, target in judged}
    second = {name: (target, later.random()) for name, target in judged}
    once = decided_on(photos, scores(first, num_classes=num_classes), **keys)
    twice = decided_on(once, scores(second, num_classes=num_classes), round=2, **keys)
    alone = decided_on(photos, scores(second, num_classes=num_classes), round=2, **keys)
    for name in ("label", "kept", "decision", "score", "round", "scored_by"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(alone, name))
    train = photos.split == "train"
    for decided in (once, twice):
        believed = train & (decided.decision == "")
        assert (train & (decided.decision != "")).sum() <= budget * train.sum()
        for label in set(photos.label[train]):
            size = int((train & (photos.label == label)).sum())
            assert (believed & (photos.label == label)).sum() >= min(size, max(count, int(np.ceil(share * size))))
        assert decided.given_label.tolist() == photos.given_label.tolist()
        assert decided.kept[photos.split == "test"].all()


def test_decisions_do_not_depend_on_the_names_of_classes_or_the_order_of_folds() -> None:
    photos, judged, seen, _ = planted()
    plain = decided_on(photos, judged, rule="posterior", floor_count=1, fold_embeddings=seen)
    other = dict(zip("abcd", "zxqm", strict=True))
    renamed = manifest([other[label] for label in photos.label], [*photos.split])
    renamed = dataclasses.replace(renamed, id=photos.id)
    new = np.array([renamed.classes.index(other[name]) for name in "abcd"])
    moved = dataclasses.replace(judged, target=new[judged.target], top=new[judged.top])
    assert np.array_equal(
        decided_on(renamed, moved, rule="posterior", floor_count=1, fold_embeddings=seen).kept, plain.kept
    )
    halves = [judged.select(np.arange(len(judged)) % 2 == part) for part in (0, 1)]
    there, back = (out_of_sample(parts, photos) for parts in (halves, halves[::-1]))
    assert np.array_equal(decided_on(photos, there).kept, decided_on(photos, back).kept)


def test_names_of_products_reach_the_rule() -> None:
    given, _, probs, embeddings = named_clusters(sorted(NAMES), 10)
    photos = manifest([sorted(NAMES)[label] for label in given], ["train"] * len(given))
    top = np.argsort(-probs, axis=1)[:, :10]
    sparse = np.take_along_axis(probs, top, 1)
    judged = Scores(photos.id.astype(str), given, probs[np.arange(len(given)), given], top, sparse)
    seen = FoldEmbeddings(embeddings, np.zeros(len(given), np.int64))
    plain, named = (label_quality(given, TopK(top, sparse, judged.p_label), embeddings, names=names)
                    for names in (None, sorted(NAMES)))  # fmt: skip
    assert np.abs(named - plain).max() > 0.1
    assert np.array_equal(decided_on(photos, judged, rule="posterior", fold_embeddings=seen).score, named)


def test_vectors_of_names_reach_the_rule() -> None:
    photos, judged, seen, _ = planted()
    vectors = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    named = seen._replace(more=(seen.embeddings[:, :3],), name_vectors=(vectors, None))
    expected = label_quality(judged.target, TopK(judged.top, judged.probs, judged.p_label, 4), named.encoders,
                             names=photos.classes, name_vectors=[vectors, None])  # fmt: skip
    assert np.array_equal(decided_on(photos, judged, rule="posterior", fold_embeddings=named).score, expected)
    plain = decided_on(photos, judged, rule="posterior", fold_embeddings=named._replace(name_vectors=()))
    assert not np.array_equal(plain.score, expected)


def test_each_photo_names_the_folds_that_judged_it() -> None:
    photos = manifest(["a", "b", "a", "b"], ["train", "train", "train", "val"])
    folds = [scores({"p0": (0, 0.9), "p2": (0, 0.2), "p3": (1, 0.25)}), scores({"p1": (1, 0.6), "p3": (1, 0.75)})]
    judge = scored_by(["fold-0", "fold-1"], folds, out_of_sample(folds, photos))
    assert judge.tolist() == ["fold-0", "fold-1", "fold-0", "fold-0 fold-1"]


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
    found = fold_embeddings(seen, parts, judged, shared=False)
    assert found.fold.tolist() == [*fold[: n - 20], *[0] * 20], "validation photos are the first fold's"
    decided = decided_on(photos, judged, rule="posterior", fold_embeddings=found, validation=True)
    assert np.array_equal(decided.kept, given == truth), "each fold's own axis tells; mixed up they would cancel"
    together = fold_embeddings(seen, parts, judged, shared=True)
    assert np.array_equal(together.embeddings[:], found.embeddings[:])
    assert not together.fold.any(), "of one network"


def of_training_and_validation(*, right: bool) -> tuple[Manifest, Scores, FoldEmbeddings]:
    """130 training photos, three of ten photos of class 0 labelled 1, and 30 validation photos, with right labels or wrong."""
    draw = np.random.default_rng(0)
    true = np.repeat([0, 1], [100, 60])
    given = np.where(np.arange(160) < 30, 1, true)
    given[130:] = int(right)
    photos = manifest([("a", "b")[each] for each in given], ["train"] * 130 + ["val"] * 30)
    judged = scores({f"p{i}": (int(given[i]), 0.9 if given[i] == true[i] else 0.1) for i in range(160)})
    order = np.argsort(judged.id)
    embeddings = np.eye(2)[true] + 0.1 * draw.normal(size=(160, 2))
    return photos, judged.select(order), FoldEmbeddings(embeddings[order], np.zeros(160, np.int64))


@pytest.mark.parametrize("right", [True, False])
def test_confusion_is_of_training_photos_alone(right: bool) -> None:
    photos, judged, seen = of_training_and_validation(right=right)
    noise = confusion(photos, judged, assess(photos, judged, settings=POSTERIOR, fold_embeddings=seen))
    assert noise.matrix()[0].tolist() == pytest.approx([0.7, 0.3], abs=0.05)
    assert noise.kept[1] > 0.85


def test_the_estimate_of_the_decisions_gives_the_noise_up_to_what_validation_photos_say() -> None:
    photos, judged, seen = of_training_and_validation(right=True)
    probs = TopK(judged.top, judged.probs, judged.p_label, 2)
    every = confusion(manifest([*photos.given_label], ["train"] * 160), judged,
                      assess(photos, judged, settings=POSTERIOR, fold_embeddings=seen))  # fmt: skip
    alone = estimate_noise(judged.target, probs, seen.embeddings, names=photos.classes)
    assert np.array_equal(every.matrix(), alone.matrix()), "without validation photos it is as it was"
    train = photos.split[photos.rows_of(judged.id)] == "train"
    known = judged.select(train)
    former = estimate_noise(known.target, TopK(known.top, known.probs, known.p_label, 2), seen.embeddings[train],
                            names=photos.classes)  # fmt: skip
    noise = confusion(photos, judged, assess(photos, judged, settings=POSTERIOR, fold_embeddings=seen))
    assert noise.matrix() == pytest.approx(former.matrix(), abs=0.02)
    assert every.rate < noise.rate == pytest.approx(former.rate, abs=0.01), "right validation photos would dilute it"


@pytest.mark.parametrize(("rule", "params"), [("posterior", {"count": 5}), ("log_margin", {})])
def test_a_round_gathers_its_evidence_once(rule: str, params: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    def counting(data: RuleInput, *, count: int, ridge: float, most: int) -> Evidence:
        gathered.append(count)
        return gather_evidence(data, count=count, ridge=ridge, most=most)

    monkeypatch.setattr("models.cleaning.rules.gather_evidence", counting)
    photos, judged, seen = of_training_and_validation(right=True)
    settings = Clean(rule=rule, params=params, relabel=0.9, correct=True)
    assessment = assess(photos, judged, settings=settings, fold_embeddings=seen)
    decided = decide(photos, judged, assessment, settings=settings, round=1, scored_by=np.full(160, "fold", object))
    assert confusion(photos, judged, assessment).rate > 0.1
    assert gathered == [params.get("count", 10)], "with the parameters of the rule, or the defaults of posterior"
    expected = label_quality(judged.target, TopK(judged.top, judged.probs, judged.p_label, 2), seen.embeddings, rule=rule,
                             names=photos.classes, **params)  # fmt: skip
    assert np.array_equal(decided.score[photos.rows_of(judged.id)], expected)
