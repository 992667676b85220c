"""Re-balancing methods: compared with slow formulas, on a planted long tail, and folded into the graph."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.evaluation.accuracy import accuracy
from models.export.graph import DeployGraph, fold_head
from models.export.onnx_file import write_onnx
from models.export.session import open_session
from models.networks.network import Network, build_network
from models.recipe.config import Export, Member
from models.training.classifiers import (
    NEVER,
    blend,
    class_means,
    hits,
    prior_bias,
    retrain_rows,
    scale_rows,
    set_classifier,
    tau_normalise,
)
from models.training.train import Trained, load_network, save_network

COUNTS = [round(200 * 100 ** (-i / 9)) for i in range(10)]  # 200 to 2


def mean_class(weight: Tensor, bias: Tensor | None, embedding: Tensor, target: np.ndarray) -> float:
    ranked = functional.linear(embedding, weight, bias).argsort(1, descending=True).numpy()
    return accuracy(ranked, target, train_counts=np.bincount(target)).mean_class


def clusters(counts: list[int], seed: int, spread: float = 0.7) -> tuple[Tensor, np.ndarray]:
    """Points about the corners of a simplex, `counts` per class, as embeddings (N, C)."""
    target = np.repeat(np.arange(len(counts)), counts)
    noise = spread * torch.randn(len(target), len(counts), generator=torch.Generator().manual_seed(seed))
    return torch.eye(len(counts))[torch.from_numpy(target)] + noise, target


def long_tail(counts: list[int], seed: int) -> tuple[Tensor, np.ndarray]:
    """Overlapping clusters about fixed centres, `counts` points per class, as embeddings (N, 8)."""
    centres = torch.randn(len(counts), 8, generator=torch.Generator().manual_seed(7))
    target = np.repeat(np.arange(len(counts)), counts)
    noise = torch.randn(len(target), 8, generator=torch.Generator().manual_seed(seed))
    return centres[torch.from_numpy(target)] + noise, target


KNOWN, HELD_OUT = long_tail(COUNTS, seed=1), long_tail([100] * 10, seed=2)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    """Classifier trained on the long tail without any balancing."""
    embedding, target = KNOWN
    weight = torch.zeros(10, 8, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        functional.cross_entropy(embedding @ weight.T, torch.from_numpy(target)).backward()
        optimizer.step()
    return weight.detach()


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


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_adjusted_probabilities_are_those_under_the_other_prior(tau: float) -> None:
    """p(y | x) / prior^tau, normalised; for tau = 1, Bayes' rule with equally frequent classes."""
    counts = np.array([70, 29, 1, 0])
    logits = torch.randn(50, 4, dtype=torch.float64)
    prior = torch.tensor([0.7, 0.29, 0.01, 0.01], dtype=torch.float64)  # none counts as one
    slow = logits.softmax(1) / prior**tau
    slow = slow / slow.sum(1, keepdim=True)
    torch.testing.assert_close((logits + prior_bias(counts, tau)).softmax(1), slow, rtol=1e-5, atol=1e-7)
    assert prior_bias(counts, 0.0).tolist() == [0, 0, 0, 0]


def test_class_means_answer_the_class_at_the_smallest_angle() -> None:
    embedding, target = clusters([40, 9, 1], seed=3)
    embedding = embedding + 5.0  # the mean of all has to come off
    weight, bias = class_means(embedding, target, num_classes=3)
    asked = torch.randn(200, 3) + 5.0
    centre = embedding.mean(0)
    means = torch.stack([embedding[torch.from_numpy(target == c)].mean(0) - centre for c in range(3)])
    angle = torch.stack([functional.cosine_similarity(asked - centre, mean[None]) for mean in means], dim=1)
    assert torch.equal(functional.linear(asked, weight, bias).argmax(1), angle.argmax(1))


def test_a_blend_answers_by_the_mean_of_both_logits(plain: Tensor) -> None:
    asked, counts = HELD_OUT[0], np.array(COUNTS)
    adjusted = functional.linear(asked, plain, prior_bias(counts, 1.0))
    means = functional.linear(asked, *class_means(*KNOWN, num_classes=10))
    found = functional.linear(asked, *blend(plain, class_means(*KNOWN, num_classes=10), counts=counts))
    torch.testing.assert_close(found, (adjusted + means) / 2, rtol=1e-4, atol=1e-4)


def test_class_means_are_as_sure_as_their_training_photos_allow() -> None:
    near, target = clusters([50, 50, 50], seed=1, spread=0.2)
    far, _ = clusters([50, 50, 50], seed=1, spread=1.5)
    sure, unsure = (
        functional.linear(e, *class_means(e, target, num_classes=3)).softmax(1).max(1).values.mean()
        for e in (near, far)
    )
    assert sure > 0.95
    assert unsure < 0.75


def test_a_class_without_photos_is_never_answered_by_its_mean() -> None:
    embedding, target = clusters([5, 5], seed=1)
    weight, bias = class_means(embedding, target, num_classes=3)
    assert bias[2] == NEVER
    assert not (functional.linear(10 * torch.randn(100, 2), weight, bias).argmax(1) == 2).any()


@pytest.mark.parametrize("name", ["tau", "logit_adjustment", "blend", "ncm", "lws", "crt"])
def test_every_way_lifts_the_mean_class_and_the_tail(plain: Tensor, name: str) -> None:
    weight, bias = {
        "tau": lambda: (tau_normalise(plain, 1.0), None),
        "logit_adjustment": lambda: (plain, prior_bias(np.array(COUNTS), 1.0)),
        "blend": lambda: blend(plain, class_means(*KNOWN, num_classes=10), counts=np.array(COUNTS)),
        "ncm": lambda: class_means(*KNOWN, num_classes=10),
        "lws": lambda: (scale_rows(plain, *KNOWN, epochs=20, lr=0.05, seed=0), None),
        "crt": lambda: (retrain_rows(*KNOWN, num_classes=10, epochs=20, lr=0.05, seed=0), None),
    }[name]()
    assert mean_class(weight, bias, *HELD_OUT) > mean_class(plain, None, *HELD_OUT) + 0.05
    small = HELD_OUT[1] >= 7
    before, after = (hits(w, b, *HELD_OUT)[small].mean() for w, b in ((plain, None), (weight, bias)))
    assert after > before + 0.1


def test_scaled_rows_keep_their_directions(plain: Tensor) -> None:
    scaled = scale_rows(plain, *KNOWN, epochs=20, lr=0.05, seed=0)
    torch.testing.assert_close(functional.cosine_similarity(scaled, plain), torch.ones(10))
    factor = scaled.norm(dim=1) / plain.norm(dim=1)
    assert factor[9] > 1 > factor[0], "the smallest class is raised"


def test_retrained_rows_are_the_same_again() -> None:
    once, again = (retrain_rows(*KNOWN, num_classes=10, epochs=2, lr=0.05, seed=0) for _ in range(2))
    assert torch.equal(once, again)


def test_hits_are_counted_in_pieces() -> None:
    embedding, target = clusters([400, 300], seed=1)
    weight, bias = torch.randn(2, 2), torch.randn(2)
    slow = functional.linear(embedding, weight, bias).argmax(1).numpy() == target
    assert np.array_equal(hits(weight, bias, embedding, target), slow)
    assert len(hits(weight, None, embedding[:0], target[:0])) == 0


def test_a_tie_is_a_miss() -> None:
    embedding, target = torch.ones(3, 2), np.array([0, 1, 2])
    assert hits(torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), None, embedding, target).tolist() == [False] * 3
    assert hits(torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.0, 1.0]]), None, embedding, target).tolist() == [
        False,
        True,
        False,
    ]


def network() -> Network:
    torch.manual_seed(1)
    made = build_network(Member(backbone="test_resnet", size=32), num_classes=7).train()
    for _ in range(3):
        made(torch.rand(8, 3, 32, 32))
    made.head.neck.weight.data.uniform_(0.5, 1.5)
    made.head.classifier.weight.data *= 20 * torch.linspace(0.5, 2, 7)[:, None]
    return made.eval()


def methods() -> dict[str, tuple[Tensor, Tensor | None, float]]:
    """Rows, bias and tau of each method, from embeddings of the network's width."""
    weight = network().head.classifier.weight.detach()
    counts = [30, 12, 8, 4, 2, 1, 1]
    target = np.repeat(np.arange(7), counts)
    known = weight[torch.from_numpy(target)] + torch.randn(len(target), 512), target
    return {
        "none": (weight, None, 0.0),
        "tau": (weight, None, 0.7),
        "logit_adjustment": (weight, prior_bias(np.array(counts), 0.8), 0.0),
        "blend": (*blend(weight, class_means(*known, num_classes=7), counts=np.array(counts)), 0.0),
        "ncm": (*class_means(*known, num_classes=7), 0.0),
        "lws": (scale_rows(weight, *known, epochs=3, lr=0.1, seed=0), None, 0.0),
        "crt": (retrain_rows(*known, num_classes=7, epochs=3, lr=2e-3, seed=0), None, 0.0),
    }


METHODS = methods()


@pytest.mark.parametrize("name", METHODS)
def test_a_balanced_classifier_folded_equals_it_applied(name: str, tmp_path: Path) -> None:
    weight, bias, tau = METHODS[name]
    net, untouched = network(), network()
    set_classifier(net.head, weight, bias)
    save_network(
        tmp_path / "network.pt", net, member=Member(backbone="test_resnet", size=32), classes=list("abcdefg"), tau=tau
    )
    embed, classifier = fold_head(load_network(tmp_path / "network.pt").network.head, tau=tau)
    features = 3 * torch.randn(40, net.head.embed.in_features)
    with torch.no_grad():
        applied = functional.linear(untouched.head.embedding(features), tau_normalise(weight, tau), bias)
        torch.testing.assert_close(classifier(embed(features)), applied, rtol=1e-5, atol=2e-4)
        if name == "none":
            torch.testing.assert_close(applied, untouched.head(features).logits, rtol=0, atol=0)


def test_the_exported_file_holds_the_bias(tmp_path: Path) -> None:
    """A graph of two members, one with a bias and one with tau, answers as the networks do."""
    members = []
    for name in ("ncm", "tau"):
        net, (weight, bias, tau) = network(), METHODS[name]
        set_classifier(net.head, weight, bias)
        members.append(Trained(net.eval(), Member(backbone="test_resnet", size=32), list("abcdefg"), tau))
    settings = Export(input_size=32, crops=1, top_k=7)
    write_onnx(
        DeployGraph(copy.deepcopy(members), settings=settings), tmp_path / "model.onnx", input_size=32, metadata={}
    )
    photos = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    ids, probs = open_session(tmp_path / "model.onnx").run(["ids", "probs"], {"image": photos})
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        each = [functional.linear(m.network.embedding(pixels), tau_normalise(m.network.head.classifier.weight, m.tau),
                                  m.network.head.classifier.bias).softmax(1) for m in members]  # fmt: skip
    mean = torch.stack(each).mean(0)
    assert probs == pytest.approx(mean.gather(1, torch.from_numpy(ids)).numpy(), abs=2e-5)
    assert np.array_equal(ids[:, 0], mean.argmax(1).numpy())
