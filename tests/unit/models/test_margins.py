"""Angular classifiers: compared with the papers' formulas, in training, and converted to linear ones."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.augment import whole_view
from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.evaluation.scores import read_scores
from models.export.__main__ import export
from models.export.graph import DeployGraph
from models.losses import Samples, build_loss
from models.losses.chunked import chunked_loss
from models.networks.inputs import Features
from models.networks.margins import Angular, add_margin
from models.networks.network import EMBEDDING, Head, Network, Normalisation
from models.recipe.config import Export, Member, Recipe, from_dict, to_dict
from models.training.classifiers import linear_rows
from models.training.decoupling import rebalance
from models.training.job import Job
from models.training.train import load_network, train

ARC = Member(backbone="test_resnet", size=32, seed=3, head="arcface", scale=16.0, margin_rad=0.3, centres=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_margin(logits: Tensor, target: Tensor, scale: float, margin: float) -> Tensor:
    moved = logits.clone()
    for row, label in enumerate(target):
        moved[row, label] = scale * torch.cos(torch.arccos(logits[row, label] / scale) + margin)
    return moved


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.5])
def test_the_margin_is_added_to_the_angle_of_the_label(margin: float) -> None:
    angle = torch.rand(50, 7, dtype=torch.float64, generator=generator()) * (math.pi - margin - 0.02) + 0.01
    logits = (30 * angle.cos()).requires_grad_()
    target = torch.randint(7, (50,), generator=generator(1))
    found = add_margin(logits, target, scale=30.0, margin_rad=margin)
    expected = slow_margin(logits, target, 30.0, margin)
    torch.testing.assert_close(found, expected)
    by_rows = torch.randn(50, 7, dtype=torch.float64, generator=generator(2))
    ours, theirs = (torch.autograd.grad((each * by_rows).sum(), logits)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.5])
def test_past_a_half_turn_the_margin_does_not_turn_back(margin: float) -> None:
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    logits = (10 * angle.cos())[:, None].repeat(1, 2).requires_grad_()
    moved = add_margin(logits, torch.zeros(2001, dtype=torch.int64), scale=10.0, margin_rad=margin)
    assert bool((moved[1:, 0] < moved[:-1, 0]).all()), "a larger angle is always worse"
    late = angle > math.pi - margin
    expected = 10 * (angle.cos() - margin * math.sin(margin))
    torch.testing.assert_close(moved[late, 0], expected[late])
    (slope,) = torch.autograd.grad(moved[:, 0].sum(), logits)
    assert bool(slope.isfinite().all())
    assert bool((slope[:, 0] >= 0).all())


def test_logits_are_cosines_to_the_nearest_centre() -> None:
    head = Head(6, num_classes=4, member=ARC).eval()
    features = torch.randn(9, 6, generator=generator())
    with torch.no_grad():
        logits, embedding = head(features)
        behind = head.neck(head.embed(features))
    assert embedding.norm(dim=1).tolist() == pytest.approx([math.sqrt(EMBEDDING)] * 9)
    centres = head.classifier.weight.detach().view(4, 2, EMBEDDING)
    for i in range(9):
        for j in range(4):
            best = max(float(functional.cosine_similarity(behind[i], centre, dim=0)) for centre in centres[j])
            assert float(logits[i, j]) == pytest.approx(16 * best, abs=1e-4)


def test_a_linear_classifier_answers_alike_and_takes_the_dominant_centre() -> None:
    for centres in (1, 3):
        member = dataclasses.replace(ARC, centres=centres)
        normalisation = Normalisation((0.5,) * 3, (0.3,) * 3)
        network = Network(nn.Identity(), width=6, num_classes=4, normalisation=normalisation, member=member)
        head, views = network.head, torch.randn(2, 40, 6, generator=generator())
        target = np.arange(40) % 3  # the last class has no photo
        rows = linear_rows(network, Features(views, head), target)
        with torch.no_grad():
            logits, embedding = head.eval()(views[0])
            scores = embedding @ head.rows.T
        if centres == 1:
            torch.testing.assert_close(embedding @ rows.T, logits)
        for label in range(4):
            votes = [0] * centres
            for i in np.flatnonzero(target == label):
                votes[int(scores[i, label * centres : (label + 1) * centres].argmax())] += 1
            assert torch.equal(rows[label], head.rows[label * centres + votes.index(max(votes))].detach())


@pytest.mark.parametrize("rows", [1, 3, 10])
@pytest.mark.parametrize("name", ["ce", "agce", "marvel+"])
def test_pieces_give_what_the_whole_gives(name: str, rows: int) -> None:
    classifier = Angular(8, 5, scale=12.0, centres=3).double()
    loss, target = build_loss(name, num_classes=5), torch.randint(5, (10,), generator=generator())
    loss.begin(Samples(np.array([str(i) for i in range(10)], object), target.numpy(), list("abcde")))
    loss.margin = lambda logits, target: add_margin(logits, target, scale=12.0, margin_rad=0.4)
    embedding = torch.randn(10, 8, dtype=torch.float64, generator=generator(1)).requires_grad_()
    index, of_each = torch.arange(10), torch.linspace(0.1, 2, 10, dtype=torch.float64)
    whole = loss(classifier(embedding), target, index, embedding)
    pieces = chunked_loss(loss, classifier.rows, embedding, target, index, rows=rows)
    torch.testing.assert_close(pieces, whole)
    learnt = [classifier.weight, embedding]
    ours, theirs = (torch.autograd.grad((each * of_each).sum(), learnt) for each in (pieces, whole))
    torch.testing.assert_close(ours, theirs)


def test_the_loss_learns_with_the_margin_and_remembers_without() -> None:
    logits = 10 * torch.rand(6, 5, generator=generator()) - 5
    target = torch.arange(6) % 5
    samples = Samples(np.array([str(i) for i in range(6)], object), target.numpy(), list("abcde"))
    plain, strict = build_loss("marvel", num_classes=5), build_loss("marvel", num_classes=5)
    strict.margin = lambda logits, target: add_margin(logits, target, scale=5.0, margin_rad=0.5)
    leaf = logits.clone().requires_grad_()
    for loss in (plain, strict):
        loss.begin(samples)
        value = loss(leaf, target, torch.arange(6))
        expected = leaf if loss is plain else add_margin(leaf, target, scale=5.0, margin_rad=0.5)
        torch.testing.assert_close(value, functional.cross_entropy(expected, target, reduction="none"))
    assert plain.memory is not None
    assert strict.memory is not None
    for ours, theirs in zip(strict.memory.merge().values.values(), plain.memory.merge().values.values(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.fixture(scope="module")
def trained(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arcface")
    arcface = dataclasses.replace(recipe, members=(ARC,))
    (out / "recipe.json").write_text(json.dumps(to_dict(arcface)))
    train(Job(data=data, recipe=arcface, member=0, out=out))
    return out


def test_a_trained_network_has_rows_and_embeddings_of_one_length(trained: Path) -> None:
    network = load_network(trained / "network.pt").network
    rows = network.head.classifier.weight
    assert rows.shape == (4, EMBEDDING)
    assert rows.norm(dim=1).tolist() == pytest.approx([16 / math.sqrt(EMBEDDING)] * 4)
    with torch.no_grad():
        logits, embedding = network(torch.rand(5, 3, 32, 32))
    assert embedding.norm(dim=1).tolist() == pytest.approx([math.sqrt(EMBEDDING)] * 5)
    assert float(logits.abs().max()) <= 16.001


def test_its_scores_are_those_of_the_saved_network(data: Path, trained: Path) -> None:
    manifest, scores = read_manifest(data), read_scores(trained / "scores.parquet")
    network = load_network(trained / "network.pt").network
    row = int(np.flatnonzero(manifest.id.astype(str) == scores.id[0])[0])
    (photo,) = Photos(manifest, np.array([row]), side=40).in_order(1)
    with torch.no_grad():
        p = network(whole_view(photo, 32)).logits.softmax(1)[0]
    assert float(p[scores.target[0]]) == pytest.approx(float(scores.p_label[0]), abs=1e-5)


def test_the_graph_answers_as_the_network(trained: Path) -> None:
    member = load_network(trained / "network.pt")
    photos = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8, generator=generator())
    with torch.no_grad():
        ids, probs, _, direction = DeployGraph([member], settings=Export(input_size=40, crops=1))(photos)
        logits, embedding = member.network(whole_view(photos, 32))
    expected = logits.softmax(1).topk(4)
    assert torch.equal(ids[:, :4], expected.indices)
    torch.testing.assert_close(probs[:, :4], expected.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(direction, functional.normalize(embedding), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["ncm", "crt"])
def test_it_is_balanced_and_exported_as_any_other(data: Path, trained: Path, tmp_path: Path, method: str) -> None:
    recipe = json.loads((trained / "recipe.json").read_text())
    recipe["balance"] |= {"method": method}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    rebalance(trained / "network.pt", data=data, recipe=tmp_path / "recipe.json", member=0, out=tmp_path)
    card = {"data_version": "0123456789ab"}
    export([tmp_path / "network.pt"], data=data, recipe=from_dict(recipe), card=card, out=tmp_path)  # proves the graph
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert parity["different_ids"] == 0
    assert parity["photos"] > 1
    assert parity["probability"] <= 1e-6
