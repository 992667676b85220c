"""How a loss's own numbers should have been: the derivative of what a training step leads to by these numbers.

Published code differentiates twice through the network, which costs three steps and which fused losses cannot do. Here the
second derivative is a difference of two first ones (Liu et al., ICLR 2019, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models import distributed
from models.losses import Loss

STEP = 1e-2  # norm of the step of the finite difference: it errs by about STEP^2, and float32 rounds to 1e-7 / STEP


def hyper_gradient(
    loss: Loss, names: Sequence[str], *, parameters: Sequence[Tensor], rates: Sequence[float],
    answer: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor], trusted: tuple[Tensor, Tensor], ignore_length: bool,
) -> Tensor:  # fmt: skip
    """(K,) float64: d CE(trusted; w - rate dL(batch; w)/dw) / d number, w the parameters, for the loss's numbers `names`.

    It is -<v, d^2 L / dw d number> with v = rate dCE/dw at the trial parameters: a central difference along v. Costs two
    passes through `answer` with a gradient and two without. Batches and results are those of all workers together.

    Args:
        answer: input -> logits (N, C), a function of the parameters.
        batch, trusted: this worker's part: input and classes (N,).
        ignore_length: the derivative of a trial step of constant length: v loses its part along dL/dw. Else a number is praised
            for lengthening steps that go the right way, which an optimizer such as AdamW takes back. Ours.
    """
    sizes = [distributed.total(len(target)) for _, target in (batch, trusted)]
    with untouched(parameters) as start:
        descent = _gradient(loss(answer(batch[0]), batch[1]).sum() / sizes[0], parameters)
        _place(parameters, start, descent, by=[-rate for rate in rates])
        cost = F.cross_entropy(answer(trusted[0]), trusted[1], reduction="sum") / sizes[1]
        v = [rate * part for rate, part in zip(rates, _gradient(cost, parameters), strict=True)]
        if ignore_length:
            share = _dot(v, descent) / (_dot(descent, descent) or 1.0)
            v = [part - share * along for part, along in zip(v, descent, strict=True)]
        norm = math.sqrt(_dot(v, v))
        if not norm:  # the learning rate is 0
            return torch.zeros(len(names), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            _place(parameters, start, v, by=[sign * STEP / norm] * len(v))
            with torch.no_grad():
                logits = answer(batch[0])
            ends.append(_by_numbers(loss, names, logits, batch[1]) / sizes[0])
    return distributed.summed(ends[1] - ends[0]) * (norm / (2 * STEP))


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    return [distributed.summed(part) for part in torch.autograd.grad(value, parameters, materialize_grads=True)]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float(a.flatten() @ b.flatten()) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def _place(
    parameters: Sequence[Tensor], start: Sequence[Tensor], way: Sequence[Tensor], *, by: Sequence[float]
) -> None:
    for parameter, origin, part, length in zip(parameters, start, way, by, strict=True):
        parameter.copy_(origin + length * part)


def _by_numbers(loss: Loss, names: Sequence[str], logits: Tensor, target: Tensor) -> Tensor:
    """(K,) float64 derivatives of the sum of the loss by its numbers."""
    before = {name: getattr(loss, name) for name in names}
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in before.items()}
    try:
        set_parameters(loss, leaves)
        value = loss(logits, target).sum()
    finally:
        set_parameters(loss, before)
    return torch.stack(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))


@contextmanager
def untouched(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Whatever happens to them inside is taken back, to the bit; gives their copies."""
    own = list(tensors)
    copies = [tensor.detach().clone() for tensor in own]
    try:
        yield copies
    finally:
        with torch.no_grad():
            for tensor, copy in zip(own, copies, strict=True):
                tensor.copy_(copy)


def set_parameters(loss: Loss, values: Mapping[str, Any]) -> None:
    """Sets the loss's numbers."""
    for name, value in values.items():
        setattr(loss, name, value)
