"""Losses with state after `begin`, slow formulas for them, and clusters with planted wrong labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses import Samples, build_loss
from models.losses.stateful import Stateful
from tests.unit.models.formulas import softmax

NAMES = ["aum", "car", "marvel", "marvel+", "truncated_gce"]
WIDTH = 4
Rows = NDArray[np.int64]


def begin_loss(name: str, target: Rows | list[int], *, classes: int, **params: Any) -> Stateful:
    """A loss after `begin` with the samples s0000, s0001 and so on."""
    if name in ("aum", "car"):
        params = {"width": WIDTH} | params
    loss = build_loss(name, num_classes=classes, **params)
    assert isinstance(loss, Stateful)
    labels = np.asarray(target, np.int64)
    ids = np.array([f"s{number:04d}" for number in range(len(labels))], object)
    loss.begin(Samples(ids, labels, [f"class {number}" for number in range(classes)]))
    return loss


def batch(n: int = 12, classes: int = 10, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, target, index and embedding in float64."""
    draw = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    embedding = torch.randn(n, WIDTH, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=draw), torch.arange(n), embedding


def perturb(loss: Stateful) -> None:
    """Replaces the trainable parameters of the loss by random numbers."""
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(5))


def run_epochs(loss: Stateful, margins: list[list[float]], *, first: int = 0) -> None:
    """Runs epochs in which each sample has the given logit margin between two classes; NaN: it does not occur."""
    target = torch.from_numpy(loss.known.target)
    for epoch, epoch_margins in enumerate(margins, first):
        loss.start_epoch(epoch)
        margin = torch.tensor(epoch_margins, dtype=torch.float32)
        index = torch.nonzero(margin.isfinite())[:, 0]
        logits = torch.zeros(len(index), loss.num_classes).scatter(1, target[index, None], margin[index, None])
        logits[:, 2:] = -50
        loss(logits, target[index], index, torch.ones(len(index), WIDTH))
        loss.end_epoch()


def car_formula(row: list[float], t: list[float], h: float, *, lam: float, beta: float, clamp: float = 0.0) -> float:
    """Loss of CAR for one row: the three published terms, soft_label, with the published clamp of t."""
    c = 1 / (1 + math.exp(-h))
    t = [max(x, clamp) for x in t]
    q = [c * p + (1 - c) * x for p, x in zip(softmax(row), t, strict=True)]
    fit = -math.fsum(x * math.log(y) for x, y in zip(t, q, strict=True))
    auxiliary = -math.fsum(y * math.log(max(x, 1e-4)) for x, y in zip(t, q, strict=True))
    return fit - lam * math.log(c) + beta * auxiliary


def soft_label(loss: Stateful, index: int) -> list[float]:
    """The soft label of a sample, with its rest spread over the other classes."""
    kept = {
        int(k): float(p)
        for k, p in zip(loss.known["classes"][index], loss.known["probs"][index], strict=True)
        if k >= 0
    }
    rest = max(1 - math.fsum(kept.values()), 0) / max(loss.num_classes - len(kept), 1)
    return [kept.get(k, rest) for k in range(loss.num_classes)]


def confidence_logits(loss: Stateful, embedding: Tensor) -> list[float]:
    """Logits of the label confidence that CAR's unit computes from embeddings."""
    unit = loss.get_submodule("unit")
    assert isinstance(unit.weight, Tensor)
    assert isinstance(unit.bias, Tensor)
    return (embedding @ unit.weight.double() + unit.bias.double()).tolist()


def marvel_after(margins: list[list[float]], *, target: list[int] | None = None, **params: Any) -> Stateful:
    """MARVEL after epochs with these margins."""
    settings: dict[str, Any] = {"run": 2, "start_epoch": 1, "relative": "none", "n_min": 1, "max_share": 0.9} | params
    loss = begin_loss("marvel", target or [0] * len(margins[0]), classes=2, **settings)
    run_epochs(loss, margins)
    loss.start_epoch(len(margins))
    return loss


class Task:
    """Gaussian clusters with some wrong labels, and a network of two layers."""

    def __init__(self, sizes: list[int], *, wrong: float, spread: float = 0.7, dims: int = 16, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        truth = np.repeat(np.arange(len(sizes)), sizes)
        centres = draw.normal(size=(len(sizes), dims))
        self.x = torch.from_numpy(centres[truth] + spread * draw.normal(size=(len(truth), dims))).float()
        self.target = truth.copy()
        flip = draw.random(len(truth)) < wrong
        self.target[flip] = (truth[flip] + draw.integers(1, len(sizes), flip.sum())) % len(sizes)
        self.wrong, self.sizes = flip, sizes
        torch.manual_seed(seed)
        self.body = torch.nn.Sequential(torch.nn.Linear(dims, 64), torch.nn.ReLU(), torch.nn.Linear(64, WIDTH * 8))
        self.head = torch.nn.Linear(WIDTH * 8, len(sizes), bias=False)

    def train(self, name: str, *, num_epochs: int, lr: float = 3e-3, **params: Any) -> Stateful:
        """Trains network and loss, and returns the loss."""
        if name in ("aum", "car"):
            params = {"width": WIDTH * 8} | params
        loss = begin_loss(name, self.target, classes=len(self.sizes), **params)
        learnt = [*self.body.parameters(), *self.head.parameters(), *loss.parameters()]
        optimizer = torch.optim.Adam(learnt, lr=lr)
        target = torch.from_numpy(self.target)
        for epoch in range(num_epochs):
            if loss.wants_answers(epoch):
                with torch.no_grad():
                    log_p = self.head(self.body(self.x)).log_softmax(1)
                loss.take_answers(log_p.gather(1, target[:, None])[:, 0], accuracy=math.nan)
            loss.start_epoch(epoch)
            for rows in self.batches():
                embedding = self.body(self.x[rows])
                optimizer.zero_grad()
                loss(self.head(embedding), target[rows], rows, embedding).mean().backward()
                optimizer.step()
            loss.end_epoch()
        loss.start_epoch(num_epochs)
        return loss

    def batches(self) -> Iterator[Tensor]:
        yield from torch.randperm(len(self.x)).split(64)
