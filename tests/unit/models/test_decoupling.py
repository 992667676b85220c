"""Choice among balanced classifiers on selection photos, and the output of a re-balancing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data.manifest import Manifest, read_manifest
from models.errors import ConfigError
from models.evaluation.scores import read_scores
from models.recipe.config import Balance, Recipe, from_dict, to_dict
from models.training.classifiers import retrain_rows, tau_normalise
from models.training.decoupling import (
    METHODS,
    ClassifierChoice,
    Embedded,
    best_scored,
    choose_classifier,
    choose_option,
    grid,
    options,
    rebalance,
)
from models.training.job import Job
from models.training.train import load_network, train
from tests.unit.models.test_classifiers import clusters, long_tail, mean_class

COUNTS = np.array([40, 40, 40, 40])
LONG_TAIL = torch.eye(4) * torch.tensor([8.0, 2.0, 1.0, 0.5])[:, None]  # rows as a long tail leaves them


def chosen_tau(weight: Tensor, validation: Embedded, settings: Balance) -> ClassifierChoice:
    means = partial(validation.means, len(weight))
    candidates = options("tau", weight, validation, means=means, counts=COUNTS, settings=settings, seed=0)
    return choose_option("tau", candidates, validation, counts=COUNTS[: len(weight)], seed=0)


def test_the_grid_holds_both_ends() -> None:
    assert grid(0.3, 0.1) == [0.0, 0.1, 0.2, 0.3]
    assert grid(0.0, 0.05) == [0.0]
    assert len(grid(2.0, 0.05)) == 41


def test_tau_is_the_smallest_within_one_standard_error_of_the_best() -> None:
    """The error is the standard deviation of the paired difference over 200 draws, with equal weight per class."""
    validation = Embedded(*clusters([40, 30, 20, 10], seed=3))
    choice = chosen_tau(LONG_TAIL, validation, Balance(tau_max=1.0, tau_step=0.1))
    target = validation.target
    hit = np.stack(
        [(validation.embedding @ tau_normalise(LONG_TAIL, t / 10).T).argmax(1).numpy() == target for t in range(11)]
    )
    curve = [mean_class(tau_normalise(LONG_TAIL, t / 10), None, validation.embedding, target) for t in range(11)]
    assert [tau for tau, _ in choice.curve] == pytest.approx([t / 10 for t in range(11)])
    assert [value for _, value in choice.curve] == pytest.approx(curve, abs=1e-6)
    best, share = int(np.argmax(curve)), 1 / np.bincount(target)[target]
    draws = np.random.default_rng(0).integers(len(target), size=(200, len(target)))
    errors = [
        np.std([((hit[best][d] * 1.0 - hit[t][d]) * share[d]).sum() / share[d].sum() for d in draws]) for t in range(11)
    ]
    slow = next(t for t in range(11) if curve[t] >= curve[best] - errors[t])
    assert 0 < slow < best
    assert choice.option.tau == pytest.approx(slow / 10)
    assert choice.error == pytest.approx(errors[slow])
    assert choice.figures.mean_class == pytest.approx(curve[slow])
    assert choice.figures.top1 == pytest.approx(hit[slow].mean())


def test_tau_stays_at_0_without_a_reason_to_move() -> None:
    validation = Embedded(*clusters([10, 10, 10], seed=1, spread=0.01))
    assert chosen_tau(torch.eye(3), validation, Balance()).option.tau == 0.0
    assert chosen_tau(torch.eye(3), validation, Balance(tau_max=0)).curve == ((0.0, 1.0),)
    empty = chosen_tau(torch.eye(3), Embedded(validation.embedding[:0], validation.target[:0]), Balance())
    assert (empty.option.tau, empty.curve) == (0.0, ())
    assert empty.to_dict()["mean_class"] is None


def test_strength_0_gives_the_trained_classifier() -> None:
    known = Embedded(*clusters([10, 10, 10, 10], seed=1))
    for method in ("tau", "logit_adjustment"):
        means = partial(known.means, len(COUNTS))
        first = next(options(method, LONG_TAIL, known, means=means, counts=COUNTS, settings=Balance(), seed=0))
        assert torch.equal(first.rows, LONG_TAIL)
        assert first.bias is None or not first.bias.any()


def test_best_is_the_first_method_within_one_standard_error_of_the_best() -> None:
    known, validation = Embedded(*long_tail([100, 30, 10, 3], seed=1)), Embedded(*long_tail([25] * 4, seed=2))
    counts = np.bincount(known.target)
    trained = retrain_rows(known.embedding, known.target, num_classes=4, epochs=5, lr=0.05, seed=0)
    trained = trained * torch.tensor([3.0, 1.0, 1.0, 0.3])[:, None]
    ask = {"counts": counts, "confidence": 0.9, "seed": 0}
    best, tried, gained = choose_classifier(trained, known, validation, settings=Balance(lr=0.05), **ask)
    assert [choice.method for choice in tried] == list(METHODS)
    top = max(tried, key=lambda choice: choice.figures.mean_class)
    draws = np.random.default_rng(0).integers(100, size=(200, 100))  # classes are even: plain means
    for choice in tried[: tried.index(best) + 1]:
        error = np.std([top.hit[d].mean() - choice.hit[d].mean() for d in draws])
        near = choice.figures.mean_class >= top.figures.mean_class - error
        assert near == (choice is best), choice.method
    assert best.method != "none"
    assert gained.stays
    assert gained.after == pytest.approx(best.figures.mean_class)
    assert best.figures.mean_class > mean_class(trained, None, validation.embedding, validation.target) + 0.05
    few = Embedded(validation.embedding[::20], validation.target[::20])
    unproven, *_ = choose_classifier(trained, known, few, settings=Balance(lr=0.05), **ask)
    assert unproven.method == "none", "five photos prove nothing"
    _, tried, _ = choose_classifier(trained, known, validation, settings=Balance(epochs=0), **ask)
    assert [choice.method for choice in tried] == ["none", "tau", "logit_adjustment", "blend", "ncm"]


def test_best_leaves_a_classifier_alone_that_nothing_clearly_betters() -> None:
    known, validation = (Embedded(*clusters([20] * 4, seed=seed, spread=0.05)) for seed in (1, 2))
    best, tried, _ = choose_classifier(
        torch.eye(4), known, validation, counts=COUNTS, settings=Balance(), confidence=0.9, seed=0
    )
    assert tried[0].figures.mean_class == 1
    assert best.method == "none"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_by_name_is_the_only_one_tried(method: str) -> None:
    known = Embedded(*clusters([30, 9, 1], seed=1))
    settings = from_dict({"name": "", "balance": {"method": method, "epochs": 2}}).balance
    for validation in (Embedded(*clusters([9, 0, 4], seed=2)), Embedded(torch.empty(0, 3), np.empty(0, np.int64))):
        best, tried, _ = choose_classifier(
            torch.eye(3), known, validation, counts=np.array([30, 9, 1]), settings=settings, confidence=0.9, seed=0
        )
        assert [choice.method for choice in tried] == [method]
        assert best is tried[0]
        json.dumps(best.to_dict(), allow_nan=False)


def test_only_classes_with_validation_photos_have_a_say() -> None:
    """The class without photos has the shortest row, so accuracy gives no reason to lengthen it."""
    embedding, target = clusters([30, 30, 0, 0], seed=1, spread=0.1)
    assert chosen_tau(LONG_TAIL, Embedded(embedding, target), Balance()).option.tau == 0.0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "norm"}, r"balance\.method: 'norm' is not one of 'best', .*'crt'"),
        ({"tau_max": -0.1}, r"balance\.tau_max: -0\.1 is outside \[0, 4\]"),
        ({"adjust_max": 5}, r"balance\.adjust_max: 5\.0 is outside \[0, 4\]"),
        ({"tau_step": 0}, r"balance\.tau_step: 0\.0 is outside \[0\.01, 1\]"),
        ({"method": "crt", "epochs": 0}, r'balance\.epochs: 0, but balance\.method = "crt" has to train'),
    ],
)
def test_balance_out_of_range_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"name": "", "balance": table})


def test_the_best_scored_are_those_that_cleaning_believes_else_the_network() -> None:
    known = Embedded(*clusters([5, 2, 1], seed=1))
    score = np.array([5, 1, 4, np.nan, 3, 0, 1, np.nan], np.float32)
    subset = best_scored(known, score, torch.eye(3), count=2)
    assert np.array_equal(subset.target, [0, 0, 1, 1, 2])
    assert torch.equal(subset.embedding, known.embedding[[0, 2, 5, 6, 7]])
    assert best_scored(known, score, torch.eye(3), count=0) is known
    log_p = (known.embedding @ torch.eye(3).T).log_softmax(1)[:5, 0]
    unjudged = best_scored(known, np.full(8, np.nan, np.float32), torch.eye(3), count=2)
    assert torch.equal(unjudged.embedding[:2], known.embedding[log_p.topk(2).indices.sort().values])


Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


def rebalanced(data: Path, recipe: Recipe, folder: Path) -> Path:
    """Trains in a folder unless it has a network, and re-balances it; the folder of the latter."""
    if not (folder / "network.pt").exists():
        train(Job(data=data, recipe=recipe, member=0, out=folder))
    (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    out = folder / f"balanced-{recipe.balance.method}"
    out.mkdir()
    rebalance(folder / "network.pt", data=data, recipe=folder / "recipe.json", member=0, out=out)
    return out


def test_a_rebalanced_network_keeps_its_backbone_and_says_why(
    data: Path, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        out = rebalanced(data, recipe, tmp_path)
    shown = len(set(read_manifest(data).target[read_manifest(data).split == "val"]))
    assert f"only {shown} of 4 classes have validation photos" in caplog.text
    evidence = json.loads((out / "balance.json").read_text())
    assert [candidate["method"] for candidate in evidence["candidates"]] == list(METHODS)
    assert evidence["chosen"] in evidence["candidates"]
    assert evidence["chosen"].keys() >= {"tau", "top1", "mean_class", "head", "middle", "tail", "error", "curve"}
    before, after = load_network(tmp_path / "network.pt"), load_network(out / "network.pt")
    ours, theirs = after.network.state_dict(), before.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if "classifier" not in key)
    ids = read_scores(out / "scores.parquet").id
    assert sorted(ids) == sorted(read_scores(tmp_path / "scores.parquet").id)


def test_each_method_scores_as_the_network_that_it_leaves(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Scores are those of the saved network once tau is applied to it, bias included."""
    plain = read_scores(rebalanced(data, _with(recipe, "none"), tmp_path) / "scores.parquet")
    assert plain.probs == pytest.approx(read_scores(tmp_path / "scores.parquet").probs, abs=1e-6)
    for method in ("ncm", "crt"):
        out = rebalanced(data, _with(recipe, method), tmp_path)
        left = load_network(out / "network.pt")
        assert (left.network.head.classifier.bias is not None) == (method == "ncm")
        assert left.tau == 0
        assert not np.array_equal(read_scores(out / "scores.parquet").probs, plain.probs)


def test_what_is_half_believed_counts_half_in_means_and_what_is_not_is_not_learnt() -> None:
    embedding, target = clusters([30, 9, 6], seed=1)
    weight = torch.from_numpy(np.random.default_rng(0).random(45)).float()
    known = Embedded(embedding, target, weight)
    ask = {"counts": COUNTS[:3], "settings": Balance(epochs=2), "seed": 0}

    def rows(method: str, of: Embedded) -> Tensor:
        return next(options(method, torch.eye(3), of, means=partial(of.means, 3), **ask)).rows

    centre = embedding.mean(0)
    slow = torch.stack(
        [(weight[:, None] * (embedding - centre))[torch.from_numpy(target == c)].sum(0) for c in range(3)]
    )
    found = rows("ncm", known)
    torch.testing.assert_close(functional.normalize(found, dim=1), functional.normalize(slow, dim=1))
    assert not torch.allclose(found, rows("ncm", Embedded(embedding, target)))
    assert torch.equal(
        rows("ncm", Embedded(embedding, target)), rows("ncm", Embedded(embedding, target, torch.ones(45)))
    )
    half = weight >= 0.5
    for method in ("crt", "lws"):
        assert torch.equal(rows(method, known), rows(method, Embedded(embedding[half], target[half.numpy()])))


def test_a_rebalancing_weighs_photos_as_their_training_did(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Callable[[Callable[[Manifest], dict[str, Any]]], Path]
) -> None:
    train(Job(data=data, recipe=recipe, member=0, out=tmp_path))
    judged = variant(
        lambda m: {
            "score": (np.arange(len(m)) % 5 / 4).astype(np.float32),
            "scored_by": np.full(len(m), "fold", object),
        }
    )
    found = []
    for use in ("drop", "weigh"):
        (tmp_path / use).mkdir()
        shutil.copy(tmp_path / "network.pt", tmp_path / use)
        asked = dataclasses.replace(
            _with(recipe, "blend"), clean=dataclasses.replace(recipe.clean, use=use, floor_count=1)
        )
        out = rebalanced(judged, asked, tmp_path / use)
        found.append(load_network(out / "network.pt").network.head.classifier.weight)
    assert not torch.equal(*found)


def _with(recipe: Recipe, method: str) -> Recipe:
    return dataclasses.replace(
        recipe, balance=from_dict({"name": "", "balance": {"method": method, "epochs": 2}}).balance
    )


def test_validation_photos_of_an_unknown_class_do_not_take_part(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant
) -> None:
    manifest = read_manifest(data)
    one = np.flatnonzero(manifest.split == "val")[0]
    relabelled = variant(lambda m: {"label": np.where(np.arange(len(m)) == one, "new", m.label)})
    evidence = json.loads((rebalanced(relabelled, recipe, tmp_path) / "balance.json").read_text())
    assert 0 <= evidence["chosen"]["mean_class"] <= 1


def test_without_validation_photos_the_classifier_stays(recipe: Recipe, tmp_path: Path, variant: Variant) -> None:
    data = variant(lambda manifest: {"split": np.where(manifest.split == "val", "test", manifest.split)})
    out = rebalanced(data, recipe, tmp_path)
    evidence = json.loads((out / "balance.json").read_text())
    assert (evidence["chosen"]["method"], evidence["chosen"]["curve"]) == ("none", [])
    before, after = (load_network(folder / "network.pt") for folder in (tmp_path, out))
    assert (after.tau, torch.equal(after.network.head.classifier.weight, before.network.head.classifier.weight)) == (
        0,
        True,
    )
