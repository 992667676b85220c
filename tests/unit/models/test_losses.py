"""Losses against the formulas of their papers, written out slowly in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.errors import ConfigError
from models.losses import LOSSES, build_loss

Formula = Callable[[list[float], int], float]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = sum(math.exp(x - top) for x in row)
    return [math.exp(x - top) / total for x in row]


def smoothed(s: float) -> Formula:
    def formula(row: list[float], y: int) -> float:
        logs = [math.log(p) for p in softmax(row)]
        return -(1 - s) * logs[y] - s * sum(logs) / len(logs)

    return formula


def gce(q: float) -> Formula:
    return lambda row, y: (1 - softmax(row)[y] ** q) / q


def agce(a: float, q: float) -> Formula:
    return lambda row, y: ((a + 1) ** q - (a + softmax(row)[y]) ** q) / q


CASES: list[tuple[str, dict[str, Any], Formula]] = [
    ("ce", {}, smoothed(0)),
    ("ce", {"label_smoothing": 0.1}, smoothed(0.1)),
    ("gce", {"q": 0.3}, gce(0.3)),
    ("gce", {"q": 1}, gce(1)),
    ("agce", {"a": 0.6, "q": 0.6}, agce(0.6, 0.6)),
    ("agce", {"a": 4.0, "q": 1.5}, agce(4.0, 1.5)),
]
NAMES = sorted(LOSSES.components)


def batch(
    n: int = 16, classes: int = 7, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (n,), generator=draw)


def gradient(name: str, logits: Tensor, target: Tensor, **params: Any) -> Tensor:
    leaf = logits.clone().requires_grad_()
    build_loss(name, num_classes=logits.shape[1], **params)(leaf, target).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_every_loss_has_a_formula_here() -> None:
    assert {name for name, _, _ in CASES} == set(NAMES)


@pytest.mark.parametrize(("name", "params", "formula"), CASES)
def test_values_are_those_of_the_paper(name: str, params: dict[str, Any], formula: Formula) -> None:
    logits, target = batch()
    value = build_loss(name, num_classes=7, **params)(logits, target)
    expected = [formula(row, y) for row, y in zip(logits.tolist(), target.tolist(), strict=True)]
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_float32_value_per_sample(name: str, dtype: torch.dtype) -> None:
    logits, target = batch(dtype=dtype)
    value = build_loss(name, num_classes=7)(logits, target)
    assert value.shape == (16,)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss(name, num_classes=7)(logits.float(), target), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [False, True])
def test_extreme_logits_give_finite_gradients(name: str, dtype: torch.dtype, wrong: bool) -> None:
    logits = torch.full((2, 5), -200.0, dtype=dtype)
    logits[:, 0] = 200.0
    target = torch.full((2,), int(wrong))
    assert build_loss(name, num_classes=5)(logits, target).isfinite().all()
    assert gradient(name, logits, target).isfinite().all()


def test_gce_is_cross_entropy_as_q_falls_and_1_minus_p_at_1() -> None:
    logits, target = batch()
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(build_loss("gce", num_classes=7, q=1e-9)(logits, target), -p.log(), rtol=1e-7, atol=0)
    torch.testing.assert_close(build_loss("gce", num_classes=7, q=1.0)(logits, target), 1 - p, rtol=1e-12, atol=0)


def test_robust_losses_weigh_the_gradient_of_cross_entropy() -> None:
    """Zhang 2018, section 3.2: by p^q. Zhou 2021, section 4: by p (a + p)^(q - 1)."""
    logits, target = batch()
    p = logits.softmax(1).gather(1, target[:, None])
    plain = gradient("ce", logits, target)
    torch.testing.assert_close(gradient("gce", logits, target, q=0.4), p**0.4 * plain)
    torch.testing.assert_close(gradient("agce", logits, target, a=0.7, q=0.5), p * (0.7 + p) ** -0.5 * plain)


def test_gce_does_not_silence_a_sample_below_the_published_clamp() -> None:
    logits, target = torch.tensor([[0.0, 20.0]], dtype=torch.float64), torch.tensor([0])  # p = 2e-9
    assert gradient("gce", logits, target, q=0.3)[0, 0] == pytest.approx(-(math.exp(-20) ** 0.3), rel=1e-6)


def test_one_class_costs_nothing() -> None:
    for name in NAMES:
        assert build_loss(name, num_classes=1)(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)).abs().max() == 0


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("gcee", {}, r"loss\.name: no loss 'gcee' \(did you mean 'gce'\?\); known: agce, ce, gce"),
        ("ce", {"label_smothing": 0.1}, r"loss\.params\.label_smothing: .* \(did you mean 'label_smoothing'\?\)"),
        ("gce", {"name": "x"}, r"loss\.params\.name: 'gce' has no such parameter"),
        ("gce", {"q": 0.0}, r"loss\.params\.q: 0\.0 is outside \(0, 1\]; .*--set loss\.params\.q="),
        ("gce", {"q": 1.1}, r"loss\.params\.q: 1\.1 is outside \(0, 1\]"),
        ("gce", {"q": float("nan")}, r"loss\.params\.q: nan is not finite"),
        ("ce", {"label_smoothing": 1}, r"loss\.params\.label_smoothing: 1\.0 is outside \[0, 1\)"),
        ("agce", {"a": "much"}, r"loss\.params\.a: 'much' is not float"),
        ("agce", {"q": True}, r"loss\.params\.q: True is not float"),
    ],
)
def test_mistakes_name_the_field_and_what_was_meant(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, num_classes=3, **params)
