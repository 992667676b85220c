"""The losses as their papers print them: for one row of logits and one label, in plain Python, sharing no code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models.losses import LOSSES, build_loss

Formula = Callable[..., float]
FORMULAS: dict[str, Formula] = {}
STATELESS = [name for name in sorted(LOSSES.components) if not build_loss(name, num_classes=5).needs_index]


def formula(name: str) -> Callable[[Formula], Formula]:
    def add(function: Formula) -> Formula:
        FORMULAS[name] = function
        return function

    return add


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [math.exp(x - top) / total for x in row]


def batch(n: int = 16, classes: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float64 and labels, the same every time."""
    draw = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=draw)


def gradient(name: str, logits: Tensor, target: Tensor, **params: Any) -> Tensor:
    leaf = logits.clone().requires_grad_()
    build_loss(name, num_classes=logits.shape[1], **params)(leaf, target).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def of_labels(base: Formula, row: list[float], **params: Any) -> Iterator[float]:
    return (base(row, k, **params) for k in range(len(row)))


def normalised(base: Formula, row: list[float], y: int, **params: Any) -> float:
    return base(row, y, **params) / math.fsum(of_labels(base, row, **params))


@formula("ce")
def ce(row: list[float], y: int, label_smoothing: float = 0.0) -> float:
    targets = [label_smoothing / len(row) + (1 - label_smoothing) * (k == y) for k in range(len(row))]
    return -math.fsum(t * math.log(p) for t, p in zip(targets, softmax(row), strict=True))


@formula("focal")
def focal(row: list[float], y: int, gamma: float = 0.5, detach_factor: bool = False) -> float:
    p = softmax(row)[y]
    return -((1 - p) ** gamma) * math.log(p)


@formula("mae")
def mae(row: list[float], y: int, scale: float = 1.0) -> float:
    return scale / 2 * math.fsum(abs((k == y) - p) for k, p in enumerate(softmax(row)))


@formula("rce")
def rce(row: list[float], y: int) -> float:
    return -math.fsum(p * (0.0 if k == y else math.log(1e-4)) for k, p in enumerate(softmax(row)))


@formula("sce")
def sce(row: list[float], y: int, alpha: float = 0.1, beta: float = 1.0) -> float:
    return alpha * ce(row, y) + beta * rce(row, y)


@formula("gce")
def gce(row: list[float], y: int, q: float = 0.7) -> float:
    return (1 - softmax(row)[y] ** q) / q


@formula("polysoft")
def polysoft(row: list[float], y: int, lam: float | None = None, d: float = 2.0) -> float:
    lam = 2 * math.log(len(row)) if lam is None else lam
    loss, top = ce(row, y), (d - 1) * lam / d
    return top * (1 - (1 - loss / lam) ** (d / (d - 1))) if loss < lam else top


@formula("eps_ce+mae")
def eps_ce_mae(
    row: list[float], y: int, m: float = 1e5, alpha: float = 0.01, beta: float = 5.0, floor: float = 0.0
) -> float:
    p = softmax(row)
    raised = [(x + m * (k == p.index(max(p)))) / (1 + m) for k, x in enumerate(p)]
    return -alpha * math.log(raised[y] + floor) + beta * (1 - p[y])


@formula("bi_tempered")
def bi_tempered(row: list[float], y: int, t1: float = 0.8, t2: float = 1.2, **_: Any) -> float:
    p = tempered_softmax(row, t2)
    total = 0.0
    for k, p_k in enumerate(p):
        t_k = float(k == y)
        total += t_k * (tempered_log(1.0, t1) - tempered_log(p_k, t1)) - (t_k ** (2 - t1) - p_k ** (2 - t1)) / (2 - t1)
    return total


def tempered_log(u: float, t: float) -> float:
    return math.log(u) if t == 1 else (u ** (1 - t) - 1) / (1 - t)


def tempered_exp(u: float, t: float) -> float:
    return math.exp(u) if t == 1 else max(1 + (1 - t) * u, 0.0) ** (1 / (1 - t))


def tempered_softmax(row: list[float], t: float) -> list[float]:
    """Tempered softmax; bisection finds G in sum_k exp_t(z_k - G) = 1."""
    low, high = max(row), max(row) + 1e6  # at low the sum is at least 1
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(tempered_exp(x - middle, t) for x in row) > 1:
            low = middle
        else:
            high = middle
    return [tempered_exp(x - high, t) for x in row]


@formula("agce")
def agce(row: list[float], y: int, a: float = 0.6, q: float = 0.6) -> float:
    return ((a + 1) ** q - (a + softmax(row)[y]) ** q) / q


@formula("aul")
def aul(row: list[float], y: int, a: float = 5.5, q: float = 3.0) -> float:
    return ((a - softmax(row)[y]) ** q - (a - 1) ** q) / q


@formula("ael")
def ael(row: list[float], y: int, a: float = 2.5) -> float:
    return math.exp(-softmax(row)[y] / a)


@formula("anorm")
def anorm(row: list[float], y: int, a: float = 1.5, p: float = 0.9) -> float:
    return (math.fsum(abs(a * (k == y) - x) ** p for k, x in enumerate(softmax(row))) - (a - 1) ** p) / p


@formula("amse")
def amse(row: list[float], y: int, a: float = 30.0, mean: bool = False) -> float:
    total = math.fsum((a * (k == y) - p) ** 2 for k, p in enumerate(softmax(row)))
    return total / len(row) if mean else total


@formula("nce")
def nce(row: list[float], y: int) -> float:
    return normalised(ce, row, y)


@formula("nfl")
def nfl(row: list[float], y: int, gamma: float = 0.5, detach_factor: bool = False) -> float:
    return normalised(focal, row, y, gamma=gamma)


@formula("ngce")
def ngce(row: list[float], y: int, q: float = 0.7) -> float:
    return normalised(gce, row, y, q=q)


@formula("nmae")
def nmae(row: list[float], y: int) -> float:
    return normalised(mae, row, y)


@formula("nnce")
def nnce(row: list[float], y: int, min_prob: float = 1e-7) -> float:
    depth = -math.log(min_prob)  # published default; ours is the same up to 316 classes
    above = [depth + math.log(max(p, min_prob)) for p in softmax(row)]
    return 1 - above[y] / math.fsum(above)


def sum_of(first: Formula, second: Formula, **defaults: float) -> Formula:
    """alpha first + beta second; each part gets the parameters that it accepts."""

    def total(row: list[float], y: int, **given: Any) -> float:
        values = {"alpha": 1.0, "beta": 1.0, **defaults, **given}
        parts = [f(row, y, **{k: v for k, v in values.items() if k in f.__code__.co_varnames[2 : f.__code__.co_argcount]})
                 for f in (first, second)]  # fmt: skip
        return float(values["alpha"] * parts[0] + values["beta"] * parts[1])

    return total


for _name, _active in (("nce", nce), ("nfl", nfl)):
    FORMULAS[f"{_name}+mae"] = sum_of(_active, mae)
    FORMULAS[f"{_name}+rce"] = sum_of(_active, rce)
    FORMULAS[f"{_name}+agce"] = sum_of(_active, agce, beta=4, a=6, q=1.5)
    FORMULAS[f"{_name}+aul"] = sum_of(_active, aul, beta=4, a=6.3, q=1.5)
    FORMULAS[f"{_name}+ael"] = sum_of(_active, ael, beta=4, a=5)
FORMULAS["anl_ce"] = sum_of(nce, nnce, alpha=5, beta=5)
FORMULAS["nce+amse"] = sum_of(nce, amse, beta=0.1)


def sparse(base: Formula) -> Formula:
    def penalised(
        row: list[float], y: int, tau: float | None = None, p: float = 0.1, lam: float = 9.5, rho: float = 1.0,
        l2_normalise: bool = True, rescale: bool = True, floor: float = 0.0, **own: Any,
    ) -> float:  # fmt: skip
        tau = min(0.5, 1 / math.log(9 * (len(row) - 1))) if tau is None else tau
        norm = math.sqrt(math.fsum(x * x for x in row)) if l2_normalise else 1.0
        sharp = [x / norm / tau for x in row]
        penalty = math.fsum(max(x, floor) ** p for x in softmax(sharp))
        return base(sharp, y, **own) + lam * penalty / (len(row) ** (1 - p) if rescale else 1)

    return penalised


for _name, _base in (("ce", ce), ("focal", focal), ("gce", gce)):
    FORMULAS[f"{_name}+sr"] = sparse(_base)
