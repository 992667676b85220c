"""Losses at the limits of floating point: improbable labels, half precision, many classes, pieces of a batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from models.losses import build_loss, softmax
from tests.unit.models.formulas import FORMULAS, STATELESS, batch, gradient

MANY = 50030
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS: list[dict[str, Any]] = [{}, {"logit_bias": 3.0}]
# Parameters at the edge of their domain, where a power or a logarithm has an infinite slope.
EDGES: list[tuple[str, dict[str, Any]]] = [
    ("focal", {"gamma": 0.1}),
    ("nfl", {"gamma": 0.1}),
    ("nfl", {"gamma": 0.1, "detach_factor": True}),
    ("gce", {"q": 1e-6}),
    ("ngce", {"q": 1e-3}),
    ("agce", {"a": 1e-6, "q": 0.1}),
    ("aul", {"a": 1 + 1e-6, "q": 0.1}),
    ("ael", {"a": 0.05}),
    ("anorm", {"a": 1 + 1e-6, "p": 0.1}),
    ("polysoft", {"lam": 0.1, "d": 1.01}),
    ("eps_ce+mae", {"m": 0.0}),
    ("eps_ce+mae", {"m": 1e6}),
    ("eps_ce+mae", {"floor": 1e-8}),
    ("ce+sr", {"p": 0.01, "rescale": False, "l2_normalise": False}),
    ("ce+sr", {"p": 0.01, "floor": 1e-7, "tau": 0.05}),
]


def far_off(gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and targets: the label far below the best class, far above the others, and far below all others."""
    logits = torch.zeros(3, 6, dtype=dtype)
    logits[0, 1], logits[1, 0], logits[2, 0] = gap, gap, -gap
    return logits, torch.zeros(3, dtype=torch.int64)


def check_finite(name: str, logits: Tensor, target: Tensor, params: dict[str, Any]) -> None:
    assert build_loss(name, num_classes=logits.shape[1], **params)(logits, target).isfinite().all()
    found = gradient(name, logits, target, **params)
    assert found.dtype == logits.dtype
    assert found.isfinite().all(), found


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_underflowing_probabilities_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    for gap in (20, 120, 1000):
        for params in OPTIONS:
            check_finite(name, *far_off(gap, dtype), params)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_50_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    signs = torch.randn(32, 9, generator=torch.Generator().manual_seed(2)).sign()
    for params in OPTIONS:
        check_finite(name, (50 * signs).to(dtype), torch.arange(32) % 9, params)


@pytest.mark.parametrize(("name", "params"), EDGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edges_of_the_domains_are_finite_too(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    for gap in (0, 20, 120, 1000):
        check_finite(name, *far_off(gap, dtype), params)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float32_inside_for_any_input(name: str, dtype: torch.dtype) -> None:
    logits, target = batch()
    logits = logits.to(dtype)
    value = build_loss(name, num_classes=7)(logits, target)
    assert value.shape == (16,)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss(name, num_classes=7)(logits.float(), target), rtol=2e-6, atol=2e-6)
    wide = gradient(name, logits.float(), target)
    torch.testing.assert_close(gradient(name, logits, target), wide.to(dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", STATELESS)
def test_float32_under_autocast(name: str) -> None:
    logits, target = batch()
    loss = build_loss(name, num_classes=7)
    outside = loss(logits.bfloat16(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits.bfloat16(), target)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 2e-3])
def test_sharpening_of_almost_equal_logits_has_a_bounded_gradient(norm: float) -> None:
    """Logits are divided by their norm, but never by less than 1e-3."""
    logits, target = batch(3)
    logits = norm * logits / logits.norm(dim=1, keepdim=True)
    loss = build_loss("ce+sr", num_classes=7, tau=0.5)
    assert gradient("ce+sr", logits, target, tau=0.5).abs().max() < 1e3 / 0.5
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_(), eps=1e-8, rtol=1e-4)


@pytest.mark.parametrize("name", STATELESS)
def test_float32_is_exact_enough_at_50030_classes(name: str) -> None:
    logits, target = batch(3, MANY)
    target[0] = int(logits[0].argmax())
    exact = build_loss(name, num_classes=MANY)(logits, target)
    value = build_loss(name, num_classes=MANY)(logits.float(), target)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    wanted = gradient(name, logits, target)
    found = gradient(name, logits.float(), target).double()
    # sums of positive and negative parts cross zero, so that single entries are compared to the row's largest as well
    assert float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-4
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", STATELESS)
def test_half_precision_is_finite_at_50030_classes(name: str) -> None:
    logits, target = batch(2, MANY)
    for dtype in (torch.bfloat16, torch.float16):
        check_finite(name, logits.to(dtype), target, {})


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("params", [{}, {"logit_bias": 1.0}], ids=str)
def test_a_second_backward_gives_the_same_gradient(name: str, params: dict[str, Any]) -> None:
    logits, target = batch()
    leaf = logits.clone().requires_grad_()
    value = build_loss(name, num_classes=7, **params)(leaf, target).sum()
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize("name", STATELESS)
def test_gradients_add_up_over_two_losses_of_one_row(name: str) -> None:
    """A gradient computed in place must not be returned twice."""
    logits, target = batch()
    leaf = logits.clone().requires_grad_()
    loss = build_loss(name, num_classes=7)
    (loss(leaf, target).sum() + 2 * loss(leaf, target).sum()).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 3 * gradient(name, logits, target))


@pytest.mark.parametrize("name", STATELESS)
def test_without_gradients_the_values_are_the_same(name: str) -> None:
    logits, target = batch()
    loss = build_loss(name, num_classes=7)
    with torch.no_grad():
        plain = loss(logits, target)
    with_graph = loss(logits.requires_grad_(), target)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, with_graph.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("name", STATELESS)
def test_a_gradient_of_the_gradient_is_refused(name: str) -> None:
    """In-place gradients cannot be differentiated; without a refusal the result would be wrong."""
    logits, target = batch()
    leaf = logits.requires_grad_()
    (first,) = torch.autograd.grad(build_loss(name, num_classes=7)(leaf, target).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.square().sum().backward()


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("params", OPTIONS, ids=str)
def test_pieces_of_a_batch_make_no_difference(
    name: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target = batch(11, 7)
    whole = gradient(name, logits, target, **params)
    values = build_loss(name, num_classes=7, **params)(logits, target)
    for rows in (1, 4):
        monkeypatch.setattr(softmax, "CACHED", 7 * rows)
        assert len(list(softmax.pieces(logits))) == math.ceil(11 / rows)
        torch.testing.assert_close(gradient(name, logits, target, **params), whole, rtol=1e-13, atol=1e-14)
        pieced = build_loss(name, num_classes=7, **params)(logits, target)
        torch.testing.assert_close(pieced, values, rtol=1e-13, atol=1e-14)


def test_many_classes_are_taken_in_pieces() -> None:
    logits = torch.zeros(12, MANY)
    taken = [len(logits[rows]) for rows in softmax.pieces(logits)]
    assert sum(taken) == 12
    assert len(taken) > 2
    assert [len(torch.zeros(2, 2 * softmax.CACHED)[rows]) for rows in softmax.pieces(torch.zeros(2, 2**19))] == [1, 1]


@pytest.mark.parametrize("name", STATELESS)
def test_rows_weigh_as_they_are_weighted(name: str) -> None:
    """The trainer averages: the gradient of each row has its own weight, and a row with weight 0 has none."""
    logits, target = batch(5)
    weight = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (build_loss(name, num_classes=7)(leaf, target) * weight).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, weight[:, None] * gradient(name, logits, target))
    assert not leaf.grad[0].any()


def test_one_kernel_call_per_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums share their pass over the logits."""
    calls: list[type[Function]] = []
    real = softmax._Summary.apply
    monkeypatch.setattr(softmax._Summary, "apply", lambda *args: calls.append(softmax._Summary) or real(*args))
    logits, target = batch()
    build_loss("nfl+agce", num_classes=7)(logits, target)
    assert len(calls) == 1


def test_no_clamp_silences_a_far_off_label() -> None:
    """The published code clamps p to 1e-7, an ordinary value at 50,030 classes."""
    logits, target = torch.tensor([[0.0, 20.0]], dtype=torch.float64), torch.tensor([0])  # p_y = 2e-9
    p = math.exp(-20) / (1 + math.exp(-20))
    assert gradient("gce", logits, target, q=0.3)[0, 0] == pytest.approx(-(p**0.3) * (1 - p), rel=1e-9)
    assert gradient("mae", logits.float(), target)[0, 0] == pytest.approx(-p, rel=1e-5)
    assert gradient("rce", logits.float(), target)[0, 0] == pytest.approx(math.log(1e-4) * p, rel=1e-5)


def test_a_sure_row_keeps_its_small_loss() -> None:
    """1 - p_y is computed by expm1, so the value depends on log p_y and not on the rounding of p_y."""
    logits, target = torch.tensor([[25.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    for name in ("mae", "focal", "gce", "agce", "rce"):
        row = [25.0, 0.0]
        loss = float(build_loss(name, num_classes=2)(logits, target))
        assert loss == pytest.approx(FORMULAS[name](row, 0), rel=1e-3), name
        assert loss > 0
