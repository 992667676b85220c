"""Re-balancing a classifier: tau, its choice, and cRT."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.config import Balance, Recipe, to_dict
from models.data.manifest import Manifest, read_manifest
from models.decoupling import choose_tau, rebalance, retrain_classifier, tau_normalise
from models.evaluate import accuracy
from models.job import Job
from models.scores import read_scores
from models.train import load_network, train


def mean_class(weight: Tensor, embedding: Tensor, target: np.ndarray) -> float:
    ranked = (embedding @ weight.T).argsort(1, descending=True).numpy()
    return accuracy(ranked, target, train_counts=np.bincount(target)).mean_class


def clusters(counts: list[int], seed: int, spread: float = 0.7) -> tuple[Tensor, np.ndarray]:
    """Points about the corners of a simplex, so many per class, as embeddings (N, C)."""
    target = np.repeat(np.arange(len(counts)), counts)
    noise = spread * torch.randn(len(target), len(counts), generator=torch.Generator().manual_seed(seed))
    return torch.eye(len(counts))[torch.from_numpy(target)] + noise, target


def test_tau_0_changes_nothing_and_tau_1_makes_rows_equally_long() -> None:
    weight = torch.randn(6, 9) * torch.logspace(-2, 2, 6)[:, None]
    assert torch.equal(tau_normalise(weight, 0.0), weight)
    norms = tau_normalise(weight, 1.0).norm(dim=1)
    torch.testing.assert_close(norms, weight.norm(dim=1).mean().expand(6))


@pytest.mark.parametrize("tau", [0.3, 0.7, 1.0, 1.2])
def test_decisions_are_those_of_the_published_formula(tau: float) -> None:
    """Kang et al., ICLR 2020, section 4.3: w / |w|^tau."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 8, generator=draw, dtype=torch.float64) * torch.rand(20, 1, generator=draw)
    embedding = torch.randn(300, 8, generator=draw, dtype=torch.float64)
    published = embedding @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T
    ours = embedding @ tau_normalise(weight, tau).T
    assert torch.equal(ours.argmax(1), published.argmax(1))
    torch.testing.assert_close(ours, published * weight.norm(dim=1).mean() ** tau)


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert tau_normalise(weight, 1.0)[1].tolist() == [0, 0]
    assert tau_normalise(weight, 1.0)[0].norm() == pytest.approx(2.5)


def test_tau_is_the_smallest_within_one_standard_error_of_the_best() -> None:
    settings = Balance(tau_max=1.0, tau_step=0.1)
    embedding, target = clusters([40, 40, 40, 40], seed=1)
    weight = torch.eye(4) * torch.tensor([8.0, 2.0, 1.0, 0.5])[:, None]  # as a long tail leaves it
    choice = choose_tau(weight, embedding, target, settings=settings, name="trained", seed=0)
    curve = [mean_class(tau_normalise(weight, step / 10), embedding, target) for step in range(11)]
    assert [tau for tau, _ in choice.curve] == pytest.approx([step / 10 for step in range(11)])
    assert [value for _, value in choice.curve] == pytest.approx(curve, abs=1e-6)
    chosen = round(choice.tau * 10)
    best = max(curve)
    assert 0 < chosen <= int(np.argmax(curve))
    assert curve[chosen] >= best - choice.error - 1e-9
    assert all(value < best - choice.error for value in curve[:chosen])
    assert choice.accuracy == pytest.approx(curve[chosen])
    assert choice.error == pytest.approx(np.sqrt(best * (1 - best) / 160), rel=0.25), "that of a mean of 160 hits"


def test_tau_stays_at_0_without_a_reason_to_move() -> None:
    embedding, target = clusters([10, 10, 10], seed=1, spread=0.01)
    assert choose_tau(torch.eye(3), embedding, target, settings=Balance(), name="trained", seed=0).tau == 0.0
    switched_off = choose_tau(torch.eye(3), embedding, target, settings=Balance(tau_max=0), name="trained", seed=0)
    assert switched_off.curve == ((0.0, 1.0),)
    nobody = choose_tau(torch.eye(3), embedding[:0], target[:0], settings=Balance(), name="trained", seed=0)
    assert (nobody.tau, nobody.curve) == (0.0, ())
    assert np.isnan(nobody.accuracy)


def test_crt_lifts_the_tail_of_a_planted_imbalance() -> None:
    embedding, target = clusters([600, 60, 12], seed=1)
    plain = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([plain], lr=0.05)
    for _ in range(200):  # the classifier that the data as it lies gives
        optimizer.zero_grad()
        functional.cross_entropy(embedding @ plain.T, torch.from_numpy(target)).backward()
        optimizer.step()
    settings = Balance(epochs=20, lr=0.05)
    balanced = retrain_classifier(embedding, target, num_classes=3, settings=settings, seed=0)
    held_out = clusters([300, 300, 300], seed=2)
    assert mean_class(balanced, *held_out) > mean_class(plain.detach(), *held_out) + 0.05
    again = retrain_classifier(embedding, target, num_classes=3, settings=settings, seed=0)
    assert torch.equal(balanced, again)


Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


def rebalanced(data: Path, recipe: Recipe, folder: Path) -> Path:
    """A training and its re-balancing in that folder."""
    train(Job(data=data, recipe=recipe, member=0, out=folder))
    (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    out = folder / "balanced"
    out.mkdir()
    rebalance(folder / "network.pt", data=data, recipe=folder / "recipe.json", member=0, out=out)
    return out


def test_a_rebalanced_network_keeps_its_backbone_and_says_why(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    out = rebalanced(data, recipe, tmp_path)
    evidence = json.loads((out / "balance.json").read_text())
    assert [candidate["classifier"] for candidate in evidence["candidates"]] == ["trained", "cRT"]
    assert evidence["chosen"] in evidence["candidates"]
    before, after = load_network(tmp_path / "network.pt"), load_network(out / "network.pt")
    assert after.tau == evidence["chosen"]["tau"]
    ours, theirs = before.network.state_dict(), after.network.state_dict()
    changed = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    assert changed == (["head.classifier.weight"] if evidence["chosen"]["classifier"] == "cRT" else [])
    ids = read_scores(out / "scores.parquet").id
    assert sorted(ids) == sorted(read_scores(tmp_path / "scores.parquet").id)


def test_a_classifier_left_as_trained_scores_as_before(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    off = dataclasses.replace(recipe, balance=Balance(epochs=0, tau_max=0))
    out = rebalanced(data, off, tmp_path)
    before, after = read_scores(tmp_path / "scores.parquet"), read_scores(out / "scores.parquet")
    assert np.array_equal(before.id, after.id)
    assert after.probs == pytest.approx(before.probs, abs=1e-6)


def test_validation_photos_of_an_unknown_class_do_not_take_part(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant
) -> None:
    manifest = read_manifest(data)
    one = np.flatnonzero(manifest.split == "val")[0]
    relabelled = variant(lambda m: {"label": np.where(np.arange(len(m)) == one, "new", m.label)})
    evidence = json.loads((rebalanced(relabelled, recipe, tmp_path) / "balance.json").read_text())
    assert 0 <= evidence["chosen"]["accuracy"] <= 1


def test_without_validation_photos_the_classifier_stays(recipe: Recipe, tmp_path: Path, variant: Variant) -> None:
    data = variant(lambda manifest: {"split": np.where(manifest.split == "val", "test", manifest.split)})
    out = rebalanced(data, recipe, tmp_path)
    assert (
        load_network(out / "network.pt").tau,
        json.loads((out / "balance.json").read_text())["chosen"]["curve"],
    ) == (0, [])
