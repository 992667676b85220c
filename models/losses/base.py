"""The protocol of a loss, and the one place where log-probabilities are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.registry import Registry

LOSSES = Registry("loss")


class Loss(nn.Module):
    """forward(logits (N, C), target (N,), index (N,) or None) -> (N,), unreduced and differentiable.

    float32 inside under autocast; float64 stays float64. `index` names the samples for losses that keep state.
    """


def log_prob(logits: Tensor, target: Tensor) -> Tensor:
    """(N,) log-probability of the target, never clamped: -inf cannot occur before float32 itself overflows."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    picked: Tensor = logits.gather(1, target[:, None])[:, 0]
    return picked - logits.logsumexp(1)


def build_loss(name: str, /, num_classes: int, **params: Any) -> Loss:
    """The loss of that name for num_classes classes.

    Raises:
        ConfigError: an unknown name, a misspelt parameter, or a value out of its range.
    """
    loss: Loss = LOSSES.build(name, num_classes=num_classes, **params)
    return loss
