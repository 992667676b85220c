"""Every stateless loss and its gradient against the formula of its paper, written out slowly in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models.losses import build_loss
from tests.unit.models.formulas import FORMULAS, STATELESS, batch, gradient

PARAMS: dict[str, list[dict[str, Any]]] = {
    "ce": [{"label_smoothing": 0.1}],
    "focal": [{"gamma": 0.0}, {"gamma": 2.0}, {"detach_factor": True}],
    "mae": [{"scale": 2.0}],
    "sce": [{"alpha": 6.0, "beta": 0.1}],
    "gce": [{"q": 0.3}, {"q": 1.0}],
    "polysoft": [{"lam": 4.0}, {"lam": 1.5, "d": 1.1}, {"d": 8.0}],
    "eps_ce+mae": [{"m": 0.0}, {"m": 1e3, "alpha": 2.0, "beta": 0.3}, {"floor": 1e-8}],
    "bi_tempered": [{"t1": 0.5, "t2": 1.4}, {"t1": 1.0, "t2": 1.0}],
    "agce": [{"a": 4.0, "q": 1.5}, {"a": 1e-5, "q": 0.5}],
    "aul": [{"a": 3.0, "q": 0.1}, {"a": 6.3, "q": 1.5}],
    "ael": [{"a": 3.5}],
    "anorm": [{"a": 3.0, "p": 2.0}, {"a": 1.01, "p": 0.3}],
    "amse": [{"a": 5.0}, {"a": 5.0, "mean": True}],
    "nfl": [{"gamma": 2.0}, {"gamma": 0.0}, {"detach_factor": True}],
    "ngce": [{"q": 0.2}],
    "nnce": [{"min_prob": 1e-3}],
    "nce+mae": [{"alpha": 10.0, "beta": 0.1, "scale": 2.0}],
    "nce+rce": [{"alpha": 10.0, "beta": 0.1}],
    "nfl+mae": [{"gamma": 1.5, "beta": 3.0}],
    "nfl+rce": [{"detach_factor": True}],
    "nce+agce": [{"alpha": 10.0, "beta": 0.1, "a": 1.8, "q": 3.0}],
    "nce+aul": [{"alpha": 10.0, "beta": 0.015, "a": 6.0, "q": 3.0}],
    "nce+ael": [{"alpha": 10.0, "beta": 0.1, "a": 1.5}],
    "nfl+agce": [{"gamma": 1.0, "a": 0.6, "q": 0.6}],
    "anl_ce": [{"alpha": 10.0, "beta": 1.0, "min_prob": 1e-3}],
    "nce+amse": [{"beta": 1.0, "a": 30.0, "mean": True}],
    "ce+sr": [
        {"tau": 0.1, "lam": 4.0, "l2_normalise": False},
        {"rescale": False, "lam": 1.2},
        {"rescale": False, "floor": 1e-7, "tau": 0.02, "p": 0.01, "label_smoothing": 0.1},
    ],
    "focal+sr": [{"gamma": 2.0, "p": 0.5}],
    "gce+sr": [{"q": 0.01, "tau": 0.5, "p": 0.1, "lam": 1.2}],
}
CASES = [(name, params) for name in STATELESS for params in ({}, *PARAMS.get(name, []))]
SEVERAL = [(name, params, classes) for name, params in CASES for classes in (2, 7)]
OPTIONS: list[dict[str, Any]] = [
    {"logit_bias": 2.5},
    {"init_match": "initial", "logit_bias": 0.5},
    {"warmup_ce_epochs": 1},
    {"blend_epochs": 1},
]


def test_every_stateless_loss_has_a_formula() -> None:
    assert set(STATELESS) - set(FORMULAS) == set()


@pytest.mark.parametrize(("name", "params", "classes"), SEVERAL)
def test_values_are_those_of_the_paper(name: str, params: dict[str, Any], classes: int) -> None:
    logits, target = batch(classes=classes)
    value = build_loss(name, num_classes=classes, **params)(logits, target)
    expected = [FORMULAS[name](row, y, **params) for row, y in zip(logits.tolist(), target.tolist(), strict=True)]
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "params", "classes"), [case for case in SEVERAL if "detach_factor" not in case[1]])
def test_gradients_are_those_of_the_values(name: str, params: dict[str, Any], classes: int) -> None:
    logits, target = batch(4, classes, scale=2.0)
    loss = build_loss(name, num_classes=classes, **params)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_under_the_options(name: str, options: dict[str, Any]) -> None:
    logits, target = batch(3, 5, scale=2.0)
    loss = build_loss(name, num_classes=5, **options)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in STATELESS if name.endswith("+sr")])
def test_the_weight_of_the_penalty_grows_with_the_epochs(name: str) -> None:
    logits, target = batch()
    loss = build_loss(name, num_classes=7, lam=1.2, rho=2.0, every=5)
    rows = list(zip(logits.tolist(), target.tolist(), strict=True))
    for epoch, lam in ((0, 1.2), (4, 1.2), (5, 2.4), (14, 4.8)):
        loss.start_epoch(epoch)
        expected = torch.tensor([FORMULAS[name](row, y, lam=lam) for row, y in rows], dtype=torch.float64)
        torch.testing.assert_close(loss(logits, target), expected, rtol=1e-10, atol=0)


def test_the_rescaled_penalty_means_the_same_at_any_number_of_classes() -> None:
    for classes in (2, 100, 50030):
        equal, one = torch.zeros(1, classes), torch.zeros(1, classes)
        one[0, 0] = 1e4
        target = torch.zeros(1, dtype=torch.int64)
        options = {"lam": 1.0, "p": 0.1, "l2_normalise": False}
        penalty = build_loss("gce+sr", num_classes=classes, **options)(equal, target)
        base = build_loss("gce", num_classes=classes)(equal, target)
        assert float(penalty - base) == pytest.approx(1, rel=1e-4)
        assert float(build_loss("gce+sr", num_classes=classes, **options)(one, target)) == pytest.approx(
            classes**-0.9, rel=1e-4
        )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_detached_focal_factor_is_a_weight_of_cross_entropy(gamma: float) -> None:
    logits, target = batch()
    miss = 1 - logits.softmax(1).gather(1, target[:, None])
    found = gradient("focal", logits, target, gamma=gamma, detach_factor=True)
    torch.testing.assert_close(found, miss**gamma * gradient("ce", logits, target))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_detached_factors_of_normalised_focal_loss(gamma: float) -> None:
    """The published code: both powers are taken from detached probabilities."""
    logits, target = batch()
    leaf = logits.clone().requires_grad_()
    log_p = leaf.log_softmax(1)
    terms = (1 - log_p.detach().exp()) ** gamma * log_p
    (terms.gather(1, target[:, None])[:, 0] / terms.sum(1)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        gradient("nfl", logits, target, gamma=gamma, detach_factor=True), leaf.grad, rtol=1e-9, atol=1e-12
    )


def test_the_published_floor_of_the_sparse_penalty_stops_the_gradient_below_it() -> None:
    """p_k < 1e-7 becomes a constant; without the floor the gradient still lowers these classes."""
    logits = torch.tensor([[0.0, 0.0, -30.0]], dtype=torch.float64)
    target = torch.tensor([0])
    params = {"tau": 1.0, "l2_normalise": False, "rescale": False, "lam": 1.0}
    plain = gradient("ce", logits, target)
    floored, free = (gradient("ce+sr", logits, target, floor=floor, **params) - plain for floor in (1e-7, 0.0))
    assert float(free[0, 2]) == pytest.approx(0.1 * (math.exp(-30) / 2) ** 0.1, rel=1e-6)
    assert abs(float(floored[0, 2])) < 1e-12


def test_limits_that_the_papers_state() -> None:
    logits, target = batch()
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]

    def value(name: str, **params: Any) -> torch.Tensor:
        return build_loss(name, num_classes=7, **params)(logits, target)

    close = torch.testing.assert_close
    close(value("gce", q=1e-9), -p.log(), rtol=1e-7, atol=0)
    close(value("gce", q=1.0), 1 - p, rtol=1e-12, atol=0)
    close(value("focal", gamma=0.0), value("ce"), rtol=0, atol=0)
    close(value("agce", q=1.0), 1 - p, rtol=1e-12, atol=1e-14)
    close(value("polysoft", d=1e6, lam=50.0), value("ce"), rtol=1e-4, atol=0)
    close(value("eps_ce+mae", m=0.0, alpha=1.0, beta=0.0), value("ce"), rtol=1e-12, atol=1e-14)
