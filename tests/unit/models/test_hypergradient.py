"""The hypergradient by a finite difference, compared with the exact one of formulas that can be differentiated twice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import build_loss
from models.training.hypergradient import hyper_gradient


def slow(name: str, logits: Tensor, target: Tensor, n: dict[str, Tensor]) -> Tensor:
    """Loss that autograd can differentiate twice; the heavy-tailed softmax takes 100 bisections and two Newton steps."""
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    if name == "gce":
        return (1 - log_p.exp() ** n["q"]) / n["q"]
    if name == "sce":
        return -n["alpha"] * log_p - n["beta"] * math.log(1e-4) * (1 - log_p.exp())
    if name == "polysoft":
        lam, d = n["lam"], n["d"]
        return (d - 1) * lam / d * (1 - (1 + log_p / lam).clamp(min=0) ** (d / (d - 1)))
    t1, t2 = n["t1"], n["t2"]

    def exp_t(level: Tensor) -> Tensor:
        return (1 + (t2 - 1) * (level[:, None] - logits)) ** (-1 / (t2 - 1))

    low, high = logits.detach().amax(1), logits.detach().amax(1) + 100
    for _ in range(100):
        middle = (low + high) / 2
        over = exp_t(middle).sum(1) > 1
        low, high = torch.where(over, middle, low).detach(), torch.where(over, high, middle).detach()
    level = low
    for _ in range(2):  # each step carries one more derivative of the solution
        p = exp_t(level)
        level = level + (p.sum(1) - 1) / (p**t2).sum(1)
    p = exp_t(level)
    p_y = p.gather(1, target[:, None])[:, 0]
    return -(p_y ** (1 - t1) - 1) / (1 - t1) - (1 - (p ** (2 - t1)).sum(1)) / (2 - t1)


@pytest.mark.parametrize("ignore_length", [False, True])
@pytest.mark.parametrize("name", ["gce", "sce", "polysoft", "bi_tempered"])
@pytest.mark.parametrize(("step", "error"), [(1e-2, 1e-3), (1e-3, 1e-5)])
def test_the_difference_is_the_double_backward(
    name: str, ignore_length: bool, step: float, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default step suits float32; in float64, the error falls with the square of the step."""
    monkeypatch.setattr("models.training.hypergradient.STEP", step)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    x, trusted = torch.randn(2, 20, 6, dtype=torch.float64)
    y, trusted_y = torch.randint(5, (2, 20))
    loss, parameters, rates = build_loss(name, 5), list(network.parameters()), [0.2, 0.1, 0.5, 0.4]
    names = list(loss.learnable())
    before = [p.detach().clone() for p in parameters]
    found = hyper_gradient(loss, names, parameters=parameters, rates=rates, logits_of=network, batch=(x, y),
                           trusted=(trusted, trusted_y), ignore_length=ignore_length)  # fmt: skip

    n = {key: torch.tensor(getattr(loss, key), dtype=torch.float64, requires_grad=True) for key in names}
    value = slow(name, network(x), y, n).mean()
    assert float(value.detach()) == pytest.approx(float(loss(network(x), y).mean().detach()), rel=1e-5)
    descent = torch.autograd.grad(value, parameters, create_graph=True)
    length = torch.stack([part.square().sum() for part in descent]).sum().sqrt()
    scale = length.detach() / length if ignore_length else 1.0
    ahead = {key: p - rate * scale * part for (key, p), rate, part in
             zip(network.named_parameters(), rates, descent, strict=True)}  # fmt: skip
    cost = F.cross_entropy(torch.func.functional_call(network, ahead, trusted), trusted_y)
    exact = torch.stack(torch.autograd.grad(cost, list(n.values())))
    assert found.tolist() == pytest.approx(exact.tolist(), rel=error)
    assert all(torch.equal(p, kept) for p, kept in zip(parameters, before, strict=True))
    assert [getattr(loss, key) for key in names] == [float(value.detach()) for value in n.values()]
