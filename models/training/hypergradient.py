"""Hypergradient: derivative of the trusted loss after a training step with respect to the loss's hyperparameters.

Published code differentiates twice through the network, which costs as much as three steps and does not work with fused
losses. Here the second derivative is a finite difference of two first ones (Liu et al., ICLR 2019, equation 8).
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

STEP = 1e-2  # norm of the finite difference's step: its error is about STEP^2, and float32 rounding adds 1e-7 / STEP


def hyper_gradient(
    loss: Loss,
    names: Sequence[str],
    *,
    parameters: Sequence[Tensor],
    rates: Sequence[float],
    logits_of: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    trusted: tuple[Tensor, Tensor],
    ignore_length: bool,
) -> Tensor:
    """(K,) float64 d CE(trusted; w - rate dL(batch; w)/dw) / dh, for parameters w and the hyperparameters h in `names`.

    Equals -<v, d^2 L / dw dh> with v = rate dCE/dw at the parameters after the trial step, computed as a central
    difference along v. Costs two passes through the network with a gradient and two without. Batches and results are
    those of all workers together.

    Args:
        rates: learning rate of each parameter.
        logits_of: input -> logits (N, C), a function of the parameters.
        batch, trusted: this worker's part: input and classes (N,).
        ignore_length: differentiate a trial step of constant length, by removing the component of v along dL/dw.
            Otherwise a hyperparameter is rewarded for longer steps in the right direction, which an optimiser such as
            AdamW undoes. This option is our own.
    """
    sizes = [distributed.total(len(target)) for _, target in (batch, trusted)]
    with untouched(parameters) as start:
        descent = _gradient(loss(logits_of(batch[0]), batch[1]).sum() / sizes[0], parameters)
        _move(parameters, start, descent, by=[-rate for rate in rates])
        cost = F.cross_entropy(logits_of(trusted[0]), trusted[1], reduction="sum") / sizes[1]
        v = [rate * part for rate, part in zip(rates, _gradient(cost, parameters), strict=True)]
        if ignore_length:
            share = _dot(v, descent) / (_dot(descent, descent) or 1.0)
            v = [part - share * along for part, along in zip(v, descent, strict=True)]
        norm = math.sqrt(_dot(v, v))
        if not norm:  # the learning rate is 0
            return torch.zeros(len(names), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            _move(parameters, start, v, by=[sign * STEP / norm] * len(v))
            with torch.no_grad():
                logits = logits_of(batch[0])
            ends.append(_hyperparameter_gradient(loss, names, logits, batch[1]) / sizes[0])
    return distributed.summed(ends[1] - ends[0]) * (norm / (2 * STEP))


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient, summed over the workers."""
    return [distributed.summed(part) for part in torch.autograd.grad(value, parameters, materialize_grads=True)]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float(a.flatten() @ b.flatten()) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def _move(
    parameters: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor], *, by: Sequence[float]
) -> None:
    """Sets the parameters to start + by direction."""
    for parameter, origin, part, length in zip(parameters, start, direction, by, strict=True):
        parameter.copy_(origin + length * part)


def _hyperparameter_gradient(loss: Loss, names: Sequence[str], logits: Tensor, target: Tensor) -> Tensor:
    """(K,) float64 derivatives of the summed loss with respect to its hyperparameters."""
    before = {name: getattr(loss, name) for name in names}
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in before.items()}
    try:
        set_hyperparameters(loss, leaves)
        value = loss(logits, target).sum()
    finally:
        set_hyperparameters(loss, before)
    return torch.stack(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))


@contextmanager
def untouched(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Context that restores the tensors bit for bit at its end; yields copies of them."""
    own = list(tensors)
    copies = [tensor.detach().clone() for tensor in own]
    try:
        yield copies
    finally:
        with torch.no_grad():
            for tensor, copy in zip(own, copies, strict=True):
                tensor.copy_(copy)


def set_hyperparameters(loss: Loss, values: Mapping[str, Any]) -> None:
    """Sets hyperparameters of a loss, by name."""
    for name, value in values.items():
        setattr(loss, name, value)
